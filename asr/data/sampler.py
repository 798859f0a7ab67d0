"""Which utterances go together into a batch, in which order, on which rank: all of it a function of (seed, epoch)."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Self

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

    Utterances of a share below 1 are met in some epochs only: in order of length, each epoch takes one of every
    1 / share neighbours, always as many from a bucket. All of the same share are as likely to be met.

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

    buffer = 0
    """Utterances that are shuffled among each other, where those are not all."""

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
        order = small(np.argsort(seconds, kind="stable"))
        self._indices = order if indices is None else np.asarray(indices)[order]
        self._shares = None if shares is None else np.asarray(shares)[order]
        seconds = seconds[order]
        met = seconds if self._shares is None else seconds * self._shares
        # in a small corpus, fewer buckets: where one holds few batches, the same utterances meet again and again
        buckets = max(1, min(buckets, int(met.sum() / (MIN_BATCHES * group * batch_seconds))))
        self._buckets = _cut(seconds, met, buckets, batch_seconds)
        self._quotas = [{1.0: stop - start} for start, stop, _ in self._buckets]
        if self._shares is not None:
            self._quotas = share_quotas(self._shares, [start for start, _, _ in self._buckets], len(self._buckets))
        sizes = [size for _, _, size in self._buckets]
        count = sum(-(-sum(quota.values()) // size) for quota, size in zip(self._quotas, sizes, strict=True))
        self.micro_batches = -(-count // group) * group

    def for_rank(self, rank: int, world_size: int) -> Self:
        """The sampler of a rank, at the same place; large arrays are shared."""
        if self.group % world_size:
            raise ValueError(f"a step of {self.group} micro-batches does not divide among {world_size} ranks")
        other = copy.copy(self)
        other.rank, other.world_size = rank, world_size
        return other

    def __len__(self) -> int:
        """Micro-batches of this rank in a whole epoch, wherever the sampler stands in it."""
        return self.micro_batches // self.world_size

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, int]:
        place = {"epoch": self.epoch, "position": self.position}
        options = {"group": self.group, "buffer": self.buffer, "seed": self.seed, "curriculum": self.curriculum}
        return place | options | {"micro_batches": self.micro_batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to the place where another sampler stood.

        Raises:
            ConfigError: that was within an epoch, and its list of micro-batches was another one.
        """
        ours = self.state_dict()
        keys = [key for key in ours if key not in ("epoch", "position") and state.get(key, ours[key]) != ours[key]]
        changed = ", ".join(f"{key} {state[key]}, now {ours[key]}" for key in keys)
        if changed and 0 < state["position"] < state.get("micro_batches", self.micro_batches):
            raise ConfigError(
                f"Cannot resume within an epoch, because its batches would be other ones: the run had {changed}. "
                "Resume with the same seed and data.* options, and as many ranks times trainer.accumulate_grad_batches."
            )
        self.epoch, self.position = state["epoch"], state["position"]

    def plan(self, epoch: int) -> Plan:
        """All micro-batches of an epoch, all ranks, in order."""
        random = np.random.default_rng((self.seed, epoch))
        by_length = epoch < self.curriculum
        places, starts, stops, groups, rest = [], [], [], [], []
        drawn_before = batches_before = 0
        for drawn, (_, _, size) in zip(self._draw(random, len(self._buckets)), self._buckets, strict=True):
            places.append(np.sort(drawn) if by_length else random.permutation(drawn))
            starts.append(drawn_before + np.arange(0, len(drawn), size))
            stops.append(np.minimum(starts[-1] + size, drawn_before + len(drawn)))
            count = len(starts[-1])
            batches = batches_before + (np.arange(count) if by_length else random.permutation(count))
            whole = count // self.group * self.group
            groups.append(batches[:whole])
            rest.append(batches[whole:])
            drawn_before, batches_before = drawn_before + len(drawn), batches_before + count
        # what is left of the buckets stands in order of length: neighbours share a step
        listed = np.concatenate([*groups, *rest])
        steps = np.concatenate([listed, np.full(-len(listed) % self.group, batches_before)]).reshape(-1, self.group)
        plan = Plan(self._indices, *join(places, starts, stops), steps)
        if by_length:  # places are in order of length
            return plan.ordered(np.argsort(plan.longest(), kind="stable"))
        return plan.ordered(random.permutation(len(steps)))

    def _draw(self, random: np.random.Generator, together: int) -> Iterator[np.ndarray]:
        """The places of the utterances that an epoch meets, for each bucket; so many buckets follow by length."""
        if self._shares is None:
            yield from (small(np.arange(start, stop)) for start, stop, _ in self._buckets)
            return
        for first in range(0, len(self._buckets), together):
            quotas, buckets = self._quotas[first : first + together], self._buckets[first : first + together]
            drawn: list[list[np.ndarray]] = [[] for _ in buckets]
            for share in quotas[0]:
                of_share = (start + np.flatnonzero(self._shares[start:stop] == share) for start, stop, _ in buckets)
                places = np.concatenate([random.permutation(found) for found in of_share])
                counts = [quota[share] for quota in quotas]
                # at equal distances from a random beginning: none twice, and all equally likely
                distance = len(places) / max(1, sum(counts))
                chosen = places[((np.arange(sum(counts)) + random.random()) * distance).astype(np.int64)]
                for k, part in enumerate(np.split(chosen, np.cumsum(counts)[:-1])):
                    drawn[k].append(part)
            yield from map(np.concatenate, drawn)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield this rank's micro-batches from the present position on.

        Each is a list of utterance numbers, with the utterances of the whole step beside each; an empty micro-batch
        has the number -1.
        """
        plan = self.plan(self.epoch)
        for first in range(self.position, len(plan), self.world_size):
            self._begin_step(plan, first // self.group)
            utterances = plan.utterances(first // self.group)
            yield [(k, utterances) for k in plan[first + self.rank].tolist()] or [(-1, utterances)]

    def _begin_step(self, plan: Plan, step: int) -> None:
        """Told of every step of which a micro-batch is about to be taken."""


class Plan(Sequence[np.ndarray]):
    """The micro-batches of an epoch in order; each an array of utterance numbers.

    Args:
        indices: (U,) the utterances' numbers, by their places.
        places: (D,) of the utterances that the epoch meets.
        starts, stops: (M + 1,) which of these make a micro-batch; the last one is empty.
        steps: (S, group) the micro-batches of each step.
    """

    def __init__(
        self, indices: np.ndarray, places: np.ndarray, starts: np.ndarray, stops: np.ndarray, steps: np.ndarray
    ):
        self.indices, self.places, self.starts, self.stops, self.steps = indices, places, starts, stops, steps
        self.windows: np.ndarray | None = None
        """(S,) which part of a stream each step ends in."""

    def __len__(self) -> int:
        return self.steps.size

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        batch = self.steps.flat[index]
        return self.indices[self.places[self.starts[batch] : self.stops[batch]]]

    def utterances(self, step: int) -> int:
        """The utterances of a step."""
        batches = self.steps[step]
        return int((self.stops[batches] - self.starts[batches]).sum())

    def longest(self) -> np.ndarray:
        """(S,) the last place of each step, where places of a micro-batch are in order."""
        last = np.append(self.places, -1)[self.stops - 1]
        return last[self.steps].max(1)

    def ordered(self, order: np.ndarray) -> Plan:
        """The same steps in another order."""
        plan = Plan(self.indices, self.places, self.starts, self.stops, self.steps[order])
        plan.windows = None if self.windows is None else self.windows[order]
        return plan


def small(numbers: np.ndarray) -> np.ndarray:
    """In 32 bits, where places of utterances allow it: there are 50 million."""
    return numbers.astype(np.int32) if not len(numbers) or numbers.max() < 1 << 31 else numbers


def join(places: list, starts: list, stops: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joined, with an empty micro-batch at the end."""
    none = np.zeros(1, np.int64)
    return np.concatenate(places), np.concatenate([*starts, none]), np.concatenate([*stops, none])


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


def share_quotas(shares: np.ndarray, starts: list[int], together: int) -> list[dict[float, int]]:
    """How many utterances of each share an epoch draws for each bucket.

    Of so many buckets that follow by length, it is the share of their utterances, one at least. A draw that may fall to
    either of two buckets is counted for the longer one.
    """
    quotas: list[dict[float, int]] = [{} for _ in starts]
    for share in np.unique(shares).tolist():
        before = np.searchsorted(np.flatnonzero(shares == share), [*starts, len(shares)])
        wanted = np.diff(np.round(share * before[::together]).astype(int))
        for first, count in zip(range(0, len(starts), together), wanted.tolist(), strict=True):
            edges = before[first : first + together + 1] - before[first]
            count = max(count, min(1, int(edges[-1])))
            last = -(-np.arange(1, count + 1) * edges[-1] // max(1, count)) - 1  # where each draw may fall
            draws = np.diff(np.searchsorted(last, edges)).tolist()
            for quota, drawn in zip(quotas[first : first + together], draws, strict=True):
                quota[share] = drawn
    return quotas


def batches_by_length(indices: np.ndarray, seconds: np.ndarray, batch_seconds: float) -> list[list[int]]:
    """Utterance numbers in micro-batches of similar length and at most `batch_seconds` when padded, longest first."""
    batches: list[list[int]] = []
    longest = 0.0
    for k in np.argsort(-seconds, kind="stable"):
        if not batches or (len(batches[-1]) + 1) * longest > batch_seconds:
            batches.append([])
            longest = float(seconds[k])
        batches[-1].append(int(indices[k]))
    return batches
