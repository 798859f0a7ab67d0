"""The dataclasses that travel between the stages. Importing them loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from asr.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest: a segment of an audio file and what is said in it."""

    audio_filepath: str
    """Where the audio lies; absolute once it was read from a manifest."""
    text: str | None = None
    duration: float | None = None
    """Seconds; `None` reads to the end of the file."""
    offset: float = 0.0
    """Seconds from the start of the file."""
    id: str = ""
    speaker: str | None = None
    lang: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Every other key of the line, kept as it was."""

    def get(self, key: str) -> Any:
        """The field or extra key of that name, `None` where the utterance has no such key."""
        return getattr(self, key) if key in MANIFEST_KEYS else self.extra.get(key)


MANIFEST_KEYS = ("audio_filepath", "text", "duration", "offset", "id", "speaker", "lang")


@dataclass(frozen=True)
class Batch:
    """Padded utterances with their labels. `lengths`, `label_lengths` and counts stay on the CPU."""

    waveforms: torch.Tensor
    """(B, N) float32; what lies past an utterance's length is padding."""
    lengths: torch.Tensor
    """(B,) int64 samples."""
    labels: torch.Tensor
    """(B, L) int64; what lies past an utterance's label length is padding."""
    label_lengths: torch.Tensor
    """(B,) int64."""
    indices: torch.Tensor
    """(B,) int64: the utterances' numbers in the data set."""
    step_utterances: int = 0
    """Utterances of the whole optimizer step: all ranks and accumulated batches."""

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        return replace(
            self,
            waveforms=self.waveforms.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        return replace(self, waveforms=self.waveforms.pin_memory(), labels=self.labels.pin_memory())


@dataclass(frozen=True)
class Emissions:
    """What the acoustic model says of a batch: a distribution over labels for every frame."""

    log_probs: np.ndarray | torch.Tensor
    """(B, T, V) float32 natural logarithms; label 0 is blank."""
    lengths: np.ndarray | torch.Tensor
    """(B,) int64 frames."""
    frame_seconds: float
    """Seconds from one frame to the next."""

    def numpy(self) -> Emissions:
        """The same emissions as NumPy arrays on the CPU."""
        arrays = (x.cpu().numpy() if hasattr(x, "cpu") else x for x in (self.log_probs, self.lengths))
        return Emissions(*arrays, self.frame_seconds)  # type: ignore[arg-type, call-arg]

    def single(self) -> Any:
        """The frames (T, V) of a batch of one stream, as NumPy.

        Raises:
            DataError: there are more, or none.
        """
        arrays = self.numpy()
        if len(arrays.log_probs) != 1:
            raise DataError(f"decoder.step: one stream at a time, found a batch of {len(arrays.log_probs)}.")
        return arrays.log_probs[0][: int(arrays.lengths[0])]

    def tensors(self) -> Emissions:
        """The same emissions as tensors, on the device where they are."""
        import torch

        return Emissions(torch.as_tensor(self.log_probs), torch.as_tensor(self.lengths), self.frame_seconds)


@dataclass(frozen=True)
class Word:
    """A recognized word with its place in the audio."""

    text: str
    start: float
    """Seconds from the start of the audio."""
    end: float
    confidence: float
    """From 0 to 1; how it is computed is the decoder's to say."""

    def later(self, seconds: float) -> Word:
        """The same word, so many seconds later."""
        return replace(self, start=round(self.start + seconds, 3), end=round(self.end + seconds, 3))


@dataclass(frozen=True)
class Hypothesis:
    """One decoding of an utterance."""

    text: str
    labels: tuple[int, ...]
    score: float
    """Natural logarithm of the score that the decoder ranks by."""
    words: tuple[Word, ...] = ()
    acoustic_score: float | None = None
    """What the emissions contribute to the score, if the decoder tells it apart."""
    lm_score: float | None = None
    """What language models contribute to it, weighted."""


@dataclass(frozen=True)
class Partial:
    """What a streaming decoder knows after a step."""

    words: tuple[Word, ...]
    """Words that have become final since the step before."""
    tentative: str
    """What follows them, as it looks now; it may change."""


@dataclass(frozen=True)
class Segment:
    """What was recognized between two pauses, or cuts, of a recording."""

    text: str
    start: float
    """Where the first word begins, in seconds from the start of the audio; of the segment if it has no words."""
    end: float
    words: tuple[Word, ...] = ()
    hypotheses: tuple[Hypothesis, ...] = ()
    """The n-best list, best first."""


@dataclass(frozen=True)
class Transcript:
    """What was recognized in one recording."""

    audio: str
    """The path of the file; empty for an array."""
    text: str
    words: tuple[Word, ...]
    duration: float
    """Seconds of audio."""
    hypotheses: tuple[Hypothesis, ...] = ()
    """The n-best list, best first, of a recording that was run in one piece; each segment has its own."""
    segments: tuple[Segment, ...] = field(default=(), kw_only=True)
    """Those in which something was recognized, in order; together they have all the words."""


@dataclass(frozen=True)
class AlignedTranscript(Transcript):
    """A given text with the places of its words in an audio file."""

    labels: tuple[Word, ...] = ()
    """What each label spells, its place and posterior; labels between words, such as the space, are left out."""
    score: float = 0.0
    """How well the text fits: 0 where it is what the recognizer hears, less otherwise; the aligner says more."""
    heard: str = ""
    """What the best path of the recognizer spells, whatever the text."""
