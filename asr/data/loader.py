"""From utterance numbers to padded batches, and back to the same place after an interruption."""

from __future__ import annotations

import atexit
import bisect
import itertools
import json
import multiprocessing.connection
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from asr import signals
from asr.data.audio import read_audio
from asr.data.index import ManifestIndex
from asr.data.manifest import open_rows
from asr.data.sampler import BucketSampler
from asr.errors import AsrError, AudioError, TrainingError
from asr.types import Batch, Utterance

POLL = 5.0
"""Seconds after which a loader looks whether the workers that it waits for are alive."""
MOST_RESTARTS = 20
"""Failures of workers in a training, after which it ends anyway."""


_endings: Any = weakref.WeakKeyDictionary()
"""By iterators that have workers, what kills these."""


class Manifests(Sequence[Utterance]):
    """Several manifests as one sequence of utterances."""

    def __init__(self, paths: Sequence[str]):
        self.parts = [ManifestIndex(path) for path in paths]
        self._starts = [0, *itertools.accumulate(len(part) for part in self.parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index):
        part, position = self._locate(index)
        return part[position]

    def parts_of(self, indices: np.ndarray) -> np.ndarray:
        """(U,) which of the manifests these utterances stand in."""
        return np.searchsorted(self._starts, indices, side="right") - 1

    def _locate(self, index: int) -> tuple[ManifestIndex, int]:
        part = bisect.bisect_right(self._starts, index) - 1
        return self.parts[part], int(index) - self._starts[part]

    def text(self, index: int) -> str:
        """The transcript of an utterance, read faster than all of it."""
        part, position = self._locate(index)
        return part.text(position)

    def where(self, index: int) -> str:
        """The manifest and line of an utterance, for messages."""
        part, position = self._locate(index)
        return f"{part.path}, line {part.rows['line'][position]}"

    @property
    def seconds(self) -> np.ndarray:
        """(U,) durations; NaN where a manifest gives none."""
        return np.concatenate([part.seconds for part in self.parts])

    @property
    def files(self) -> np.ndarray:
        """(U,) the number, from 0, of the file or shard that each utterance lies in, in the manifests' order."""
        names = np.concatenate([part.rows["file"] for part in self.parts])
        begins = np.diff(names, prepend=~names[:1]) != 0
        _, first, same = np.unique(names[begins], return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first)).astype(np.int32)[same][np.cumsum(begins) - 1]


class SpeechDataset(Dataset):
    """Utterances as waveforms and label ids.

    Args:
        manifests: the utterances.
        encode: a transcript as it stands in the manifest → label ids.
        sample_rate: Hz of the waveforms.
        channel: of the audio files, from 0; `None` averages them.
    """

    def __init__(
        self,
        manifests: Manifests,
        encode: Callable[[str], list[int]],
        sample_rate: int,
        channel: int | None = None,
    ):
        self.manifests, self.encode = manifests, encode
        self.sample_rate, self.channel = sample_rate, channel
        self.lenient = False
        """Whether audio that cannot be read is left out of its batch."""
        self.left_out: set[int] = set()
        """Numbers of utterances not to be read."""
        self.reading = torch.zeros(0, dtype=torch.int64)
        """(W,) for each worker the number of the utterance that it reads, -1 for none; shared memory."""

    def __getitem__(self, micro_batch: list[tuple[int, int]]) -> tuple[Batch, dict[int, str]] | AsrError:
        """Numbers of utterances, each with the utterances of its step (see BucketSampler) → a padded batch.

        Beside it, what could not be read and why. An error that a person reads comes back as a value, to be raised
        where no worker's traceback surrounds it.
        """
        read, indices, failed = [], [], {}
        for index, _ in micro_batch:
            if index < 0 or index in self.left_out:
                continue
            try:
                read.append(self._read(index))
                indices.append(index)
            except AsrError as error:
                if not (self.lenient and isinstance(error, AudioError)):
                    return error
                failed[index] = str(error)
        waveforms, labels = zip(*read, strict=True) if read else ((), ())
        batch = Batch(
            waveforms=_pad([torch.from_numpy(waveform) for waveform in waveforms], torch.float32),
            lengths=torch.tensor([len(waveform) for waveform in waveforms], dtype=torch.int64),
            labels=_pad([torch.tensor(ids, dtype=torch.int64) for ids in labels], torch.int64),
            label_lengths=torch.tensor([len(ids) for ids in labels], dtype=torch.int64),
            indices=torch.tensor(indices, dtype=torch.int64),
            step_utterances=micro_batch[0][1],
        )
        return batch, failed

    def _read(self, index: int) -> tuple[np.ndarray, list[int]]:
        worker = get_worker_info()
        if worker is not None and len(self.reading):
            self.reading[worker.id] = index
        index %= len(self.manifests)  # a second copy has a number, and so an augmentation, of its own
        utterance = self.manifests[index]
        source = utterance.audio_filepath, self.sample_rate, utterance.offset, utterance.duration, self.channel
        try:
            waveform = read_audio(*source)
        except AudioError as error:
            raise AudioError(f"{error} It stands in {self.manifests.where(index)}.") from None
        finally:
            if worker is not None and len(self.reading):
                self.reading[worker.id] = -1
        return waveform, self.encode(utterance.text or "")


def _pad(rows: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) if rows else torch.zeros((0, 0), dtype=dtype)


class _Listed(list):
    """Micro-batches in an order of their own, from `position` on."""

    position = 0

    def __iter__(self) -> Iterator[Any]:
        return iter(self[self.position :])


class SpeechLoader(DataLoader):
    """A DataLoader over micro-batches that raises the workers' errors bare, and does not wait for ever.

    With a BucketSampler it knows its position, and resumes there: Lightning saves and restores `state_dict`. A worker
    that died, or has kept a batch waiting for `worker_timeout` seconds, is reported with the file that it was reading.
    Where `leave_out` is given, training goes on: the workers begin again at the same place, and what was being read is
    left out when it fails a second time; so is audio that cannot be read.

    Args:
        dataset: makes a batch of each item of the sampler.
        sampler: a BucketSampler, or a list of micro-batches.
        worker_timeout: seconds; 0 for no limit.
        leave_out: told the number of an utterance and why it is left out; `None`: what fails is an error.
        options: of `torch.utils.data.DataLoader`.
    """

    def __init__(
        self,
        dataset: SpeechDataset,
        sampler: BucketSampler | list,
        worker_timeout: float = 0.0,
        leave_out: Callable[[int, str], None] | None = None,
        **options: Any,
    ):
        if workers := options.get("num_workers", 0):
            dataset.reading = torch.full((workers,), -1).share_memory_()
            options |= {"timeout": min(POLL, worker_timeout or POLL), "worker_init_fn": _begin_worker}
        sampler = _Listed(sampler) if isinstance(sampler, list) else sampler
        super().__init__(dataset, batch_size=None, sampler=sampler, collate_fn=_as_it_is, **options)
        self.worker_timeout, self.leave_out = worker_timeout, leave_out
        dataset.lenient = leave_out is not None
        self.suspects: set[int] = set()
        self.restarts = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # the body runs at the first `next`: after Lightning has set the sampler's epoch or restored its state
        sampler: BucketSampler | _Listed = self.sampler  # type: ignore[assignment]
        if isinstance(sampler, _Listed):
            sampler.position = 0
        batches = self._begin()
        while True:
            try:
                loaded = self._wait_for(batches)
            except StopIteration:
                return
            except TrainingError as error:
                self._go_on(batches, error)
                batches = self._begin()
                continue
            if isinstance(loaded, AsrError):
                raise loaded
            batch, failed = loaded
            for index, why in failed.items():
                self._leave_out(index, why)
            # the sampler itself runs ahead, by what is prefetched
            sampler.position += sampler.world_size if isinstance(sampler, BucketSampler) else 1
            yield batch

    def _begin(self) -> Iterator:
        before = signal.getsignal(signal.SIGCHLD)
        with signals.held_back():
            batches: Any = super().__iter__()
        if self.num_workers and threading.current_thread() is threading.main_thread():
            # torch's handler would raise wherever the program is when a worker dies; waiting for it is the place
            signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
        if self.num_workers and batches not in _endings:  # the iterator of persistent workers begins again
            # torch would ask them to end, and they would not hear it where an error holds the iterator in a cycle
            _endings[batches] = weakref.finalize(batches, _kill, batches._workers)
        return batches

    def _wait_for(self, batches: Iterator) -> Any:
        """The next of them; TrainingError if a worker is dead or late."""
        started = time.monotonic()
        while True:
            try:
                return next(batches)
            except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
                waited = time.monotonic() - started
                workers = getattr(batches, "_workers", ())
                if not isinstance(error, RuntimeError):  # a batch whose memory went with the worker that shared it
                    _bury(workers)
                dead = [k for k, worker in enumerate(workers) if not worker.is_alive()]
                late = self.worker_timeout and waited >= self.worker_timeout
                if not dead and "timed out" in str(error) and not late:
                    continue
                if not dead and not late:
                    raise
                lost = dead or range(self.num_workers)
                reading = [int(self.dataset.reading[k]) for k in lost]  # type: ignore[attr-defined]
                self.failing = [index for index in reading if index >= 0]
                what = "died" if dead else f"has delivered no batch for {waited:.0f} s (data.worker_timeout)"
                files = " or ".join(map(self._named, self.failing)) or "no file"
                raise TrainingError(f"A data worker {what}; it was reading {files}.") from None

    def _named(self, index: int) -> str:
        manifests = self.dataset.manifests  # type: ignore[attr-defined]
        index %= len(manifests)
        return f"{manifests[index].audio_filepath} ({manifests.where(index)})"

    def _go_on(self, batches: Any, error: TrainingError) -> None:
        """End all workers; leave out what has failed before."""
        for worker in batches._workers:
            worker.kill()
        batches._shutdown_workers()
        self._iterator = None
        self.restarts += 1
        if self.leave_out is None or self.restarts > MOST_RESTARTS:
            skip = "" if self.leave_out else ", or let the training pass over it: data.failures=skip"
            raise TrainingError(f"{error} Leave it out of the manifest, or go on with resume=auto{skip}.") from None
        print(f"{error} The workers begin again.", file=sys.stderr, flush=True)
        for index in self.suspects.intersection(self.failing):
            self._leave_out(index, str(error))
        self.suspects.update(self.failing)
        self.dataset.reading.fill_(-1)  # type: ignore[attr-defined]

    def _leave_out(self, index: int, why: str) -> None:
        left_out: set[int] = self.dataset.left_out  # type: ignore[attr-defined]
        if self.leave_out is not None and index not in left_out:  # in later epochs it is not worth a word
            self.leave_out(index, why)
        left_out.add(index)

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict() if isinstance(self.sampler, BucketSampler) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.sampler, BucketSampler):
            self.sampler.load_state_dict(state)


class LeftOut:
    """Prints what a training leaves out, and notes it in a file.

    Args:
        manifests: the utterances.
        path: of the file, JSON Lines; `None` for none.
    """

    def __init__(self, manifests: Manifests, path: Path | None):
        self.manifests, self.path = manifests, path

    def __call__(self, index: int, why: str) -> None:
        utterance = self.manifests[index % len(self.manifests)]
        print(f"left out: {utterance.id}: {why}", file=sys.stderr, flush=True)
        if self.path is not None:
            row = {"id": utterance.id, "audio_filepath": utterance.audio_filepath, "duration": utterance.duration}
            with open_rows(self.path, "a") as file:
                file.write(json.dumps(row | {"reason": why}, ensure_ascii=False) + "\n")


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_worker(worker: int) -> None:
    signals.ignore()


def _bury(workers: Sequence[Any]) -> None:
    """Wait until one of them is gone, which is a moment after its sentinel says so."""
    ended = multiprocessing.connection.wait([worker.sentinel for worker in workers], POLL)
    for worker in workers:
        if worker.sentinel in ended:
            worker.join(POLL)


def _kill(workers: Sequence[Any]) -> None:
    for worker in workers:
        worker.kill()


@atexit.register
def _kill_all() -> None:
    """Ahead of multiprocessing, which would ask them to end, and wait for those that hang."""
    for end in list(_endings.values()):
        end()
