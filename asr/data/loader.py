"""From utterance numbers to padded batches, and back to the same place after an interruption."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from asr.data.audio import read_audio
from asr.data.index import ManifestIndex
from asr.data.sampler import BucketSampler
from asr.errors import AsrError, AudioError
from asr.types import Batch, Utterance


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

    def __getitem__(self, micro_batch: list[tuple[int, int]]) -> Batch | AsrError:
        """Numbers of utterances, each with the utterances of its step (see BucketSampler) → a padded batch.

        An error that a person reads comes back as a value, to be raised where no worker's traceback surrounds it.
        """
        try:
            read = [self._read(index) for index, _ in micro_batch if index >= 0]
        except AsrError as error:
            return error
        waveforms, labels = zip(*read, strict=True) if read else ((), ())
        return Batch(
            waveforms=_pad([torch.from_numpy(waveform) for waveform in waveforms], torch.float32),
            lengths=torch.tensor([len(waveform) for waveform in waveforms], dtype=torch.int64),
            labels=_pad([torch.tensor(ids, dtype=torch.int64) for ids in labels], torch.int64),
            label_lengths=torch.tensor([len(ids) for ids in labels], dtype=torch.int64),
            indices=torch.tensor([index for index, _ in micro_batch if index >= 0], dtype=torch.int64),
            step_utterances=micro_batch[0][1],
        )

    def _read(self, index: int) -> tuple[np.ndarray, list[int]]:
        index %= len(self.manifests)  # a second copy has a number, and so an augmentation, of its own
        utterance = self.manifests[index]
        source = utterance.audio_filepath, self.sample_rate, utterance.offset, utterance.duration, self.channel
        try:
            waveform = read_audio(*source)
        except AudioError as error:
            raise AudioError(f"{error} It stands in {self.manifests.where(index)}.") from None
        return waveform, self.encode(utterance.text or "")


def _pad(rows: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) if rows else torch.zeros((0, 0), dtype=dtype)


class SpeechLoader(DataLoader):
    """A DataLoader over micro-batches that raises the workers' errors bare.

    With a BucketSampler it knows its position, and resumes there: Lightning saves and restores `state_dict`.

    Args:
        dataset: makes a batch of each item of the sampler.
        sampler: a BucketSampler, or a list of micro-batches.
        options: of `torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: SpeechDataset, sampler: BucketSampler | list, **options: Any):
        super().__init__(dataset, batch_size=None, sampler=sampler, collate_fn=_as_it_is, **options)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # the body runs at the first `next`: after Lightning has set the sampler's epoch or restored its state
        sampler = self.sampler
        for batch in super().__iter__():
            if isinstance(batch, AsrError):
                raise batch
            if isinstance(sampler, BucketSampler):
                sampler.position += sampler.world_size  # the sampler itself runs ahead, by what is prefetched
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict() if isinstance(self.sampler, BucketSampler) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.sampler, BucketSampler):
            self.sampler.load_state_dict(state)


def _as_it_is(batch: Any) -> Any:
    return batch
