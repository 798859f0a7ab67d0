"""Sampling from files that are read one after the other: shards at a URL, on a spinning disk, or more than fits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np

from asr.data.remote import fetch, is_url
from asr.data.sampler import BucketSampler, Plan, join, share_quotas, small
from asr.data.shards import parse_member
from asr.errors import AsrError
from asr.types import Utterance


class StreamSampler(BucketSampler):
    """A BucketSampler that shuffles files, and utterances within a bounded buffer.

    The files are dealt to `group` lanes of equal duration, for good: in every step, micro-batch k comes from lane k, so
    each rank reads its own files and no others. In every epoch each lane's files are shuffled and cut into windows of
    about `buffer` utterances, or one file; the utterances of a bucket follow each other window by window, shuffled
    within. Steps take one micro-batch of a bucket from each lane, and come in the order of the windows that complete
    them, shuffled within a window. Micro-batches that a lane has left over stand at the end. All else is as in
    BucketSampler: the list is a function of (seed, epoch), a position in it is all the state, every rank has the same
    number of steps, and no utterance is met twice or lost.

    Args:
        seconds, batch_seconds, indices, shares, options: as in BucketSampler.
        files: (U,) the numbers, from 0, of the files that the utterances lie in.
        buffer: utterances in the window of a lane.
    """

    def __init__(
        self,
        seconds: np.ndarray,
        batch_seconds: float,
        *,
        files: np.ndarray,
        buffer: int,
        indices: np.ndarray | None = None,
        shares: np.ndarray | None = None,
        **options: Any,
    ):
        super().__init__(seconds, batch_seconds, shares=shares, **options)
        self.buffer = buffer
        self.ahead: Callable[[np.ndarray], None] | None = None
        """Told utterances of the files that this rank reads next, one of each."""
        self._announced = -1, -1
        order = self._indices
        met = np.asarray(seconds, np.float64) * (1 if shares is None else shares)
        pieces, self._lanes = _deal(np.asarray(files), met, self.group, self.seed)
        self._sizes = np.bincount(pieces, shares, len(self._lanes))
        pieces = pieces[order]
        buckets = np.repeat(
            np.arange(len(self._buckets), dtype=np.int32), [stop - start for start, stop, _ in self._buckets]
        )
        cells = self._lanes[pieces] * len(self._buckets) + buckets
        by_cell = np.argsort(cells.astype(np.uint16) if cells.max() < 1 << 16 else cells, kind="stable")
        edges = np.searchsorted(cells[by_cell], np.arange(self.group * len(self._buckets) + 1)).tolist()
        sizes = [size for *_, size in self._buckets] * self.group
        self._buckets = list(zip(edges[:-1], edges[1:], sizes, strict=True))
        order = order[by_cell]
        self._pieces, self._files = pieces[by_cell], np.asarray(files)[order]
        self._indices = order if indices is None else np.asarray(indices)[order]
        self._quotas = [{1.0: stop - start} for start, stop, _ in self._buckets]
        if self._shares is not None:
            self._shares = self._shares[by_cell]
            self._quotas = share_quotas(self._shares, edges[:-1], len(self._buckets) // self.group)
        counts = [-(-sum(quota.values()) // size) for quota, size in zip(self._quotas, sizes, strict=True)]
        self.micro_batches = self._steps(np.array(counts)).size

    def plan(self, epoch: int) -> Plan:
        random = np.random.default_rng((self.seed, epoch))
        window = self._windows(random)[self._pieces]
        places, starts, stops, windows = [], [], [], []
        before = 0
        drawn_each = self._draw(random, len(self._buckets) // self.group)
        for drawn, (_, _, size) in zip(drawn_each, self._buckets, strict=True):
            drawn = random.permutation(drawn)
            drawn = drawn[np.argsort(window[drawn], kind="stable")]
            places.append(drawn)
            starts.append(before + np.arange(0, len(drawn), size))
            stops.append(np.minimum(starts[-1] + size, before + len(drawn)))
            windows.append(window[drawn[stops[-1] - 1 - before]])
            before += len(drawn)
        steps = self._steps(np.array([len(found) for found in starts]))
        plan = Plan(self._indices, *join(places, starts, stops), steps)
        plan.windows = np.concatenate([*windows, [-1]])[steps].max(1)
        return plan.ordered(np.lexsort((random.random(len(steps)), plan.windows)))

    def _windows(self, random: np.random.Generator) -> np.ndarray:
        """(P,) in which window of its lane each piece is met."""
        order = np.lexsort((random.random(len(self._lanes)), self._lanes))
        before = np.cumsum(self._sizes[order]) - self._sizes[order]
        before -= before[np.searchsorted(self._lanes, self._lanes)]  # lanes are in order
        windows = np.empty(len(order), np.int32)
        windows[order] = before // self.buffer
        return windows

    def _steps(self, counts: np.ndarray) -> np.ndarray:
        """(S, group) numbers of micro-batches, of which each lane has so many of each bucket, one after the other."""
        firsts = (np.cumsum(counts) - counts).reshape(self.group, -1)
        counts = counts.reshape(self.group, -1)
        shared = counts.min(0)
        steps = [firsts[:, bucket] + np.arange(count)[:, None] for bucket, count in enumerate(shared)]
        left = [
            np.concatenate([first + np.arange(shared[b], counts[lane, b]) for b, first in enumerate(firsts[lane])])
            for lane in range(self.group)
        ]
        rest = np.full((max(map(len, left)), self.group), counts.sum())
        for lane, batches in enumerate(left):
            rest[: len(batches), lane] = batches
        return np.concatenate([*steps, rest]).astype(np.int64)

    def _begin_step(self, plan: Plan, step: int) -> None:
        assert plan.windows is not None
        here = self.epoch, int(plan.windows[step])
        if self.ahead is None or here == self._announced:
            return
        self._announced = here
        stop = np.searchsorted(plan.windows, plan.windows[step] + 1, side="right")
        batches = plan.steps[step:stop, self.rank :: self.world_size].ravel()
        places = np.concatenate([plan.places[plan.starts[k] : plan.stops[k]] for k in batches])
        _, first = np.unique(self._files[places], return_index=True)
        self.ahead(self._indices[places[np.sort(first)]])


def _deal(files: np.ndarray, met: np.ndarray, group: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Deal shuffled files to lanes of equal duration.

    Returns:
        (U,) the piece of a file that an utterance lies in, and (P,) the lane of each piece, from 0 to group - 1.
    """
    dealt = small(np.random.default_rng((seed, 2**32 - 1)).permutation(int(files.max()) + 1))[files]
    order = small(np.argsort(dealt, kind="stable"))
    before = np.cumsum(met[order])
    lanes = np.minimum((before - met[order]) / before[-1] * group, group - 1).astype(np.int32)
    begins = (np.diff(dealt[order], prepend=-1) != 0) | (np.diff(lanes, prepend=0) != 0)
    pieces = np.empty(len(files), np.int32)
    pieces[order] = np.cumsum(begins) - 1
    return pieces, lanes[begins]


class ReadAhead:
    """A thread that fetches the files of utterances, or reads them from the disk once, one after the other.

    What it reads lies in the cache of URLs, or in the system's for files, when the data workers want it.
    """

    def __init__(self, manifests: Sequence[Utterance]):
        self.manifests = manifests
        self.queue: SimpleQueue[list[str]] = SimpleQueue()
        self.known: set[str] = set()
        self.thread: threading.Thread | None = None

    def __call__(self, indices: np.ndarray) -> None:
        paths = [self.manifests[int(index) % len(self.manifests)].audio_filepath for index in indices]
        members = [parse_member(path) for path in paths]
        files = [member.shard if member else path for member, path in zip(members, paths, strict=True)]
        self.queue.put([file for file in files if file not in self.known])
        self.known = set(files)
        if self.thread is None or not self.thread.is_alive():
            self.thread = threading.Thread(target=self._run, daemon=True)
            self.thread.start()

    def _run(self) -> None:
        while True:
            for file in self.queue.get():
                with contextlib.suppress(AsrError, OSError):  # who needs the file says what is wrong with it
                    _read_through(file)


def _read_through(file: str) -> None:
    if is_url(file):
        fetch(file)
        return
    with open(file, "rb", buffering=0) as opened:
        while opened.read(1 << 22):
            pass
