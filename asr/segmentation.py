"""Recordings of any length, in bounded memory: overlapping windows of which the centres are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from asr.data.audio import audio_duration, read_audio
from asr.errors import ConfigError

if TYPE_CHECKING:
    from asr.recognizer import Recognizer

WINDOW, CONTEXT = 30.0, 5.0
"""Seconds of audio whose emissions are kept, and seconds on either side that the encoder sees besides."""


class Samples(Protocol):
    """An array (N,) float32, or what gives one when it is sliced."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


class LongAudio:
    """The samples of an audio file's segment, read when they are sliced.

    Args:
        path, sample_rate, offset, duration, channel: as in `read_audio`.

    Raises:
        AudioError: as `read_audio`, there and when it is sliced.
    """

    def __init__(
        self,
        path: str | Path,
        sample_rate: int,
        offset: float = 0.0,
        duration: float | None = None,
        channel: int | None = None,
    ):
        self.path, self.sample_rate, self.offset, self.channel = path, sample_rate, offset, channel
        if duration is None:
            end = audio_duration(path)
            read_audio(path, sample_rate, max(offset, end - 0.5), None, channel)  # is all there that the header says?
            duration = end - offset
        self.samples = round(duration * sample_rate)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, part: slice, /) -> np.ndarray:
        start, stop, _ = part.indices(self.samples)
        offset, duration = self.offset + start / self.sample_rate, (stop - start) / self.sample_rate
        found = read_audio(self.path, self.sample_rate, offset, duration, self.channel)[: stop - start]
        return np.pad(found, (0, stop - start - len(found)))  # rounding, or an MP3 header that promises too much


def long_emissions(
    recognizer: Recognizer, samples: Samples, window: float = WINDOW, context: float = CONTEXT
) -> Iterator[np.ndarray]:
    """The log-probabilities of a recording, one window after the other.

    A bidirectional encoder would have to see all of it at once, or read the wrong state at every cut. So each window
    is run with some context on either side, whose frames are then dropped; windows begin at whole emission frames,
    and together they have exactly the frames that the recording has in one piece.

    Args:
        recognizer: its model is run on one window at a time.
        samples: (N,) at the recognizer's `sample_rate`.
        window: seconds that are kept of each piece.
        context: seconds on either side of them; if all fits into one window with its context, it is run as one.

    Yields:
        (T', V) float32 natural logarithms; label 0 is blank.

    Raises:
        ConfigError: the encoder's frames depend on where a window ends.
    """
    model = recognizer.model
    stride = round(model.frame_seconds * model.sample_rate)  # samples
    frames = int(model.output_lengths(torch.tensor([len(samples)]))[0])
    kept, margin = max(1, round(window / model.frame_seconds)), round(context / model.frame_seconds)
    if frames <= kept + 2 * margin:
        kept = frames
    for first in range(0, frames, kept):
        last, begin = min(first + kept, frames), max(0, first - margin)
        end = len(samples) if last + margin >= frames else (last + margin) * stride
        found = recognizer.emissions([samples[begin * stride : end]]).numpy()
        part = np.asarray(found.log_probs)[0, first - begin : min(last - begin, int(found.lengths[0]))]
        if len(part) != last - first:
            raise ConfigError(
                f"{type(model.encoder).__name__} gives {len(part)} frames for a window where the whole recording has "
                f"{last - first}. Is its frame t at t · stride, whatever follows? Then give it more context."
            )
        yield part
