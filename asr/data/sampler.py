"""Which utterances go together into a batch, in which order, on which rank: all of it a function of (seed, epoch)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from asr.errors import ConfigError

MIN_BATCHES = 6
"""Optimizer steps in a bucket, on average, at the least."""


class BucketSampler:
    """Micro-batches of utterances of similar length, bounded by padded duration.

    Utterances are sorted into buckets of about equal total duration. In every epoch each bucket is shuffled and
    cut into micro-batches of as many utterances as fit into `batch_seconds` at the bucket's longest, so the number
    of micro-batches does not depend on the epoch. `group` neighbouring micro-batches of one bucket make an optimizer
    step (ranks times accumulated batches); the groups are shuffled. With W ranks, rank r takes micro-batches r,
    r + W, … of the list: two ranks see what one rank with two accumulated batches sees. A last group that is not full
    is filled with empty micro-batches, so that every rank has the same number of steps.

    Utterances of a share below 1 are met in some epochs only: of those in a bucket that have the same share, each epoch
    draws that share without replacement, always as many.

    Args:
        seconds: (U,) durations of the utterances.
        batch_seconds: the longest padded duration of a micro-batch; one utterance alone may exceed it.
        group: micro-batches of an optimizer step over all ranks.
        buckets: how many lengths are told apart, at most.
        seed: of the shuffling.
        indices: (U,) the utterances' numbers in the data set; `None`: 0 … U-1.
        rank, world_size: which micro-batches of every group are ours.
        shares: (U,) above 0 and at most 1; `None`: 1 for all.
        curriculum: the first epochs, so many, go from short to long utterances (Amodei et al. 2016, section 3.2).
    """

    def __init__(
        self,
        seconds: np.ndarray,
        batch_seconds: float,
        group: int = 1,
        buckets: int = 20,
        seed: int = 0,
        indices: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
        shares: np.ndarray | None = None,
        curriculum: int = 0,
    ):
        if group % world_size:
            raise ValueError(f"a step of {group} micro-batches does not divide among {world_size} ranks")
        self.batch_seconds, self.group, self.seed = batch_seconds, group, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.position = 0
        """Micro-batches of the list, all ranks together, that are done in this epoch."""
        self.curriculum = curriculum
        seconds = np.asarray(seconds, np.float64)
        order = np.argsort(seconds, kind="stable")
        self._indices = order if indices is None else np.asarray(indices)[order]
        self._shares = None if shares is None else np.asarray(shares)[order]
        seconds = seconds[order]
        met = seconds if self._shares is None else seconds * self._shares
        # in a small corpus, fewer buckets: where one holds few batches, the same utterances meet again and again
        buckets = max(1, min(buckets, int(met.sum() / (MIN_BATCHES * group * batch_seconds))))
        self._buckets = _cut(seconds, met, buckets, batch_seconds)
        self._quotas = [{1.0: stop - start} for start, stop, _ in self._buckets]
        if self._shares is not None:
            self._quotas = _quotas(self._shares, [start for start, _, _ in self._buckets])
        sizes = [size for _, _, size in self._buckets]
        count = sum(-(-sum(quota.values()) // size) for quota, size in zip(self._quotas, sizes, strict=True))
        self.micro_batches = -(-count // group) * group

    def __len__(self) -> int:
        """Micro-batches of this rank in a whole epoch, wherever the sampler stands in it."""
        return self.micro_batches // self.world_size

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, int]:
        ours = {"group": self.group, "micro_batches": self.micro_batches}
        return {"epoch": self.epoch, "position": self.position, **ours}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to the place where another sampler stood.

        Raises:
            ConfigError: that was within an epoch, and its list of micro-batches was another one.
        """
        ours = self.state_dict()
        changed = any(state.get(key, ours[key]) != ours[key] for key in ("group", "micro_batches"))
        if changed and 0 < state["position"] < state.get("micro_batches", self.micro_batches):
            raise ConfigError(
                f"Cannot resume within an epoch: the run had {state['micro_batches']} micro-batches an epoch, "
                f"{state['group']} to a step; now there are {self.micro_batches}, {self.group} to a step. Resume with "
                "the same data.* options, and as many ranks times trainer.accumulate_grad_batches."
            )
        self.epoch, self.position = state["epoch"], state["position"]

    def plan(self, epoch: int) -> list[np.ndarray]:
        """All micro-batches of an epoch, all ranks, in order; each an array of utterance numbers."""
        random = np.random.default_rng((self.seed, epoch))
        by_length = epoch < self.curriculum
        groups: list[list[np.ndarray]] = []
        rest: list[np.ndarray] = []
        for (start, stop, size), quota in zip(self._buckets, self._quotas, strict=True):
            drawn = self._draw(random, start, stop, quota)
            drawn = np.sort(drawn) if by_length else random.permutation(drawn)
            batches = [drawn[k : k + size] for k in range(0, len(drawn), size)]
            batches = batches if by_length else [batches[k] for k in random.permutation(len(batches))]
            whole = len(batches) // self.group * self.group
            groups += [batches[k : k + self.group] for k in range(0, whole, self.group)]
            rest += batches[whole:]
        # what is left of the buckets stands in order of length: neighbours share a step
        groups += [rest[k : k + self.group] for k in range(0, len(rest), self.group)]
        if by_length:  # places are in order of length
            groups.sort(key=lambda group: max(batch.max() for batch in group))
        else:
            groups = [groups[k] for k in random.permutation(len(groups))]
        return [self._indices[batch] for group in groups for batch in _fill(group, self.group)]

    def _draw(self, random: np.random.Generator, start: int, stop: int, quota: dict[float, int]) -> np.ndarray:
        """The places, in order of length, of the utterances of a bucket that an epoch meets."""
        if self._shares is None:
            return np.arange(start, stop)
        shares = self._shares[start:stop]
        classes = ((start + np.flatnonzero(shares == share), count) for share, count in quota.items())
        return np.concatenate(
            [places if count == len(places) else random.permutation(places)[:count] for places, count in classes]
        )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield this rank's micro-batches from the present position on.

        Each is a list of utterance numbers, with the utterances of the whole step beside each; an empty micro-batch
        has the number -1.
        """
        plan = self.plan(self.epoch)
        for first in range(self.position, len(plan), self.world_size):
            step = first // self.group * self.group
            utterances = sum(len(batch) for batch in plan[step : step + self.group])
            batch = plan[first + self.rank]
            yield [(int(k), utterances) for k in batch] or [(-1, utterances)]


def _cut(seconds: np.ndarray, met: np.ndarray, buckets: int, batch_seconds: float) -> list[tuple[int, int, int]]:
    """Cut sorted durations into (start, stop, utterances of a batch), of about equal total duration `met`."""
    total = np.cumsum(met)
    edges = np.searchsorted(total, total[-1] * np.arange(1, buckets) / buckets) if len(seconds) else []
    bounds = sorted({0, *(int(edge) for edge in edges), len(seconds)})
    cuts = []
    for start, stop in itertools.pairwise(bounds):
        size = max(1, int(batch_seconds / max(seconds[stop - 1], 1e-3)))
        cuts.append((start, stop, size))
    return cuts


def _quotas(shares: np.ndarray, starts: list[int]) -> list[dict[float, int]]:
    """How many utterances of each share an epoch draws from each bucket; over all buckets, the share of them."""
    counts = {}
    for share in np.unique(shares).tolist():
        before = np.searchsorted(np.flatnonzero(shares == share), [*starts, len(shares)])
        counts[share] = np.diff(np.round(share * before).astype(int)).tolist()
    return [{share: counts[share][k] for share in counts} for k in range(len(starts))]


def _fill(group: list[np.ndarray], size: int) -> list[np.ndarray]:
    return group + [np.empty(0, np.int64)] * (size - len(group))
