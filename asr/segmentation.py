"""Recordings of any length, in bounded memory: speech between pauses, and overlapping windows where there are none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from asr.errors import ConfigError
from asr.vad import Energy

if TYPE_CHECKING:
    from asr.recognizer import Recognizer

WINDOW, CONTEXT = 30.0, 5.0
"""Seconds of audio whose emissions are kept, and seconds on either side that the encoder sees besides."""
PAUSE = 0.6
"""Seconds without speech at which a recording is cut."""
PADDING = 0.3
"""Seconds that speech is given on either side, so that its soft beginnings and ends are heard."""
LEAST = 0.08
"""Seconds; what is louder than the noise for a shorter time, and that alone, is a click."""


@dataclass(frozen=True)
class Piece:
    """A part of a recording that is run through the model at once: a stretch of speech, or a window of one."""

    samples: np.ndarray
    """(N,) float32."""
    start: float
    """Seconds from the recording's start to the first frame that is kept."""
    stretch: int = 0
    """The number of its stretch in the recording."""
    window: int = 0
    """Its number in the stretch."""
    skip: int = 0
    """Emission frames at its start that are context."""
    keep: int | None = None
    """Frames that are kept after them; `None`: all, and the stretch ends with this piece."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def whole(self) -> bool:
        """Whether it is all of its stretch."""
        return self.window == 0 and self.keep is None

    def kept(self, log_probs: np.ndarray) -> np.ndarray:
        """What is kept of its emissions (T, V).

        Raises:
            ConfigError: there are too few, because the encoder's frames depend on where a window ends.
        """
        found = log_probs[self.skip : None if self.keep is None else self.skip + self.keep]
        if self.keep not in (None, len(found)):
            raise ConfigError(
                f"The model gives {len(found)} frames for a window that has {self.keep}. "
                "Is its frame t at t · stride, whatever follows? Then give it more context."
            )
        return found


class Windows:
    """Cuts a stretch of speech, which comes in blocks, into windows with context, unless it fits into one piece.

    A bidirectional encoder would have to see all of it at once, or read the wrong state at every cut. So each window
    is run with some context on either side, whose frames are then dropped; windows begin at whole emission frames,
    and together they have exactly the frames that the stretch has in one piece.

    Args:
        rate: samples per second.
        frame_seconds: from one emission frame to the next.
        window: seconds that are kept of each piece.
        context: seconds on either side of them; up to window + 2 · context are run in one piece.
        start: seconds from the recording's start to the stretch's.
        stretch: its number.
        ahead: seconds on the right side, if not as many as on the left; then no window waits for more than that.
    """

    def __init__(
        self,
        rate: int,
        frame_seconds: float,
        window: float,
        context: float,
        start: float = 0.0,
        stretch: int = 0,
        ahead: float | None = None,
    ):
        self._stride = round(frame_seconds * rate)  # samples
        self._kept, self._margin = max(1, round(window / frame_seconds)), round(context / frame_seconds)
        self._ahead = self._margin if ahead is None else round(ahead / frame_seconds)
        self._whole = 0 if ahead is not None else self._kept + 2 * self._margin
        self._frame_seconds, self._start, self._stretch = frame_seconds, start, stretch
        self._samples, self._window = np.zeros(0, np.float32), 0

    def add(self, samples: np.ndarray) -> Iterator[Piece]:
        """Take the next block (N,): the windows that are complete."""
        self._samples = np.concatenate([self._samples, samples])
        while len(self._samples) > max(self._whole, self._skip() + self._kept + self._ahead) * self._stride:
            skip = self._skip()
            yield self._piece(self._samples[: (skip + self._kept + self._ahead) * self._stride], self._kept)
            self._window += 1
            self._samples = self._samples[(skip + self._kept - self._skip()) * self._stride :]

    def close(self) -> Piece:
        """The last window, or the only one."""
        return self._piece(self._samples, None)

    def _skip(self) -> int:
        return min(self._margin, self._window * self._kept)

    def _piece(self, samples: np.ndarray, keep: int | None) -> Piece:
        start = self._start + self._window * self._kept * self._frame_seconds
        return Piece(samples, start, self._stretch, self._window, self._skip(), keep)


@dataclass(frozen=True)
class Segmenter:
    """Cuts recordings at their pauses.

    Args:
        vad: tells speech from noise; see `asr.vad`.
        max_segment: seconds; longer speech without a pause is run in windows of so much, with context on either side,
            and decoded in segments of at most so much. A recording that fits into one such window is not cut at all.
        min_pause: seconds without speech at which a recording is cut.
    """

    vad: Any = field(default_factory=Energy)
    max_segment: float = WINDOW
    min_pause: float = PAUSE

    def __post_init__(self) -> None:
        if not (1 <= self.max_segment < math.inf and 0 < self.min_pause < math.inf):
            raise ConfigError(
                f"max_segment={self.max_segment} must be 1 s or more, and min_pause={self.min_pause} above 0; "
                "neither is infinite."
            )

    def split(self, blocks: Iterable[np.ndarray], rate: int, frame_seconds: float) -> Iterator[Piece]:
        """Cut a recording, which comes in blocks (N,) float32, into pieces; at most one block waits in memory.

        Args:
            rate: samples per second.
            frame_seconds: from one emission frame to the next.
        """
        blocks, head, samples = iter(blocks), [], 0
        for block in blocks:
            head.append(block)
            samples += len(block)
            if samples > (self.max_segment + 2 * CONTEXT) * rate:
                yield from self._speech(chain(head, blocks), rate, frame_seconds)
                return
        yield Piece(head[0] if len(head) == 1 else np.concatenate(head), 0.0)

    def _speech(self, blocks: Iterable[np.ndarray], rate: int, frame_seconds: float) -> Iterator[Piece]:
        pause = round(self.min_pause * rate)
        padding = min(round(PADDING * rate), pause // 2)
        waiting, begin = np.zeros(0, np.float32), 0  # samples that no stretch has taken yet, and the first one's number
        stretch: Windows | None = None
        number = end = spoken = 0

        def take(stop: int) -> np.ndarray:
            nonlocal waiting, begin
            taken, waiting = np.split(waiting, [max(0, stop - begin)])
            begin += len(taken)
            return taken

        def close(stretch: Windows) -> Iterator[Piece]:
            yield from stretch.add(take(end + padding))
            if spoken >= LEAST * rate:
                yield stretch.close()

        heard: list[np.ndarray] = []

        def overheard() -> Iterator[np.ndarray]:  # not by `tee`, which keeps dozens of blocks
            for samples in blocks:
                heard.append(samples)
                yield samples

        for speech in self.vad(overheard(), rate):
            samples = heard.pop(0)
            first = begin + len(waiting)
            waiting = np.concatenate([waiting, samples])
            last = begin + len(waiting)
            edges = np.flatnonzero(np.diff(speech, prepend=False, append=False)).reshape(-1, 2)
            edges = first + edges * (rate * self.vad.frame_ms) // 1000
            for start, stop in np.minimum(edges, last).tolist():
                if stretch and start - end >= pause:
                    yield from close(stretch)
                    stretch = None
                if not stretch:
                    take(start - padding)
                    stretch = Windows(rate, frame_seconds, self.max_segment, CONTEXT, begin / rate, number)
                    number, spoken = number + 1, 0
                yield from stretch.add(take(stop))
                end, spoken = stop, spoken + stop - start
            if stretch and last - end >= pause:
                yield from close(stretch)
                stretch = None
            if not stretch:
                take(last - padding)
        if stretch:
            yield from close(stretch)


def long_emissions(
    recognizer: Recognizer, blocks: Iterable[np.ndarray], window: float = WINDOW, context: float = CONTEXT
) -> Iterator[np.ndarray]:
    """The log-probabilities of a recording, one window after the other; see `Windows`.

    Args:
        recognizer: its model is run on one window at a time.
        blocks: (N,) at the recognizer's `sample_rate`, one after the other.
        window, context: as in `Windows`.

    Yields:
        (T', V) float32 natural logarithms; label 0 is blank.

    Raises:
        ConfigError: the encoder's frames depend on where a window ends.
    """
    windows = Windows(recognizer.sample_rate, recognizer.model.frame_seconds, window, context)

    def pieces() -> Iterator[Piece]:
        for block in blocks:
            yield from windows.add(block)
        yield windows.close()

    for piece in pieces():
        yield piece_emissions(recognizer, piece)


def piece_emissions(recognizer: Recognizer, piece: Piece) -> np.ndarray:
    """The log-probabilities (T, V) that are kept of a piece, run alone."""
    found = recognizer.emissions([piece.samples]).numpy()
    return piece.kept(np.asarray(found.log_probs)[0, : int(found.lengths[0])])
