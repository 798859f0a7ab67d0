"""Live recognition: a stream of audio → words, each as soon as it is final."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from asr.data.audio import full_scale
from asr.errors import ConfigError
from asr.segmentation import CONTEXT, Windows, piece_emissions
from asr.types import Emissions, Partial, Word

if TYPE_CHECKING:
    from asr.recognizer import Recognizer

ENDPOINT = 1.0
"""Seconds without a label after which nothing that was said before can change."""
LEAST_AHEAD = 0.1
"""Seconds of context that a window needs after it, for its last frames to be complete."""


class Source(Protocol):
    """Samples of a stream → log-probabilities (T, V), as far as they are known."""

    latency: float
    """Seconds from a sound to its log-probabilities, at the most."""

    def step(self, samples: np.ndarray) -> np.ndarray: ...
    def finish(self) -> np.ndarray: ...


class Stream:
    """Recognizes one stream of audio in bounded memory, at the same cost for each second of it.

    A word is final when nothing that may come can change it: the decoder says so (`Greedy`: when the next word begins;
    `Beam`: when all prefixes in the beam agree on it), or a pause of `endpoint` seconds follows. What lies between two
    such pauses is decoded as an utterance of its own. So the words are those of the decoder, run over the emissions of
    the whole stream, cut at these pauses.

    Args:
        source: gives the emissions.
        decoder: has `start`, `step` and `finish`.
        frame_seconds: from one emission frame to the next.
        endpoint: seconds in which blank is the decoder's likeliest label; `None`: the stream is one utterance.
    """

    def __init__(self, source: Source, decoder: Any, frame_seconds: float, endpoint: float | None = ENDPOINT):
        self._source, self._decoder, self._frame_seconds = source, decoder, frame_seconds
        self._pause = max(1, round(endpoint / frame_seconds)) if endpoint else None
        self._bias = getattr(decoder, "bias", lambda log_probs: log_probs)
        self.latency = source.latency
        """Seconds from a sound to its log-probabilities; those to the decision on its word come on top."""
        self._frame = self._blanks = 0  # frames taken, and blanks at their end
        self._heard = False  # whether the utterance has a label
        self._begin_utterance()

    def step(self, samples: np.ndarray) -> Partial:
        """Take the next samples at the recognizer's rate: the words that are final now.

        Args:
            samples: (N,) floating-point numbers in -1…1, or signed integers, scaled by their type's range.

        Raises:
            AudioError: another shape or type.
        """
        samples = np.asarray(samples)
        scaled = samples * full_scale(samples, (1,))
        return self._decode(self._source.step(scaled.astype(np.float32, copy=False)))

    def finish(self) -> Partial:
        """End the stream: the words that were not final yet."""
        words = self._decode(self._source.finish()).words
        return Partial((*words, *self._end_utterance()), "")

    def _decode(self, log_probs: np.ndarray) -> Partial:
        words: list[Word] = []
        tentative = ""
        for part, ends in self._parts(log_probs):
            emissions = Emissions(part[None], np.array([len(part)]), self._frame_seconds)
            partial = self._decoder.step(emissions, self._state)
            self._given += len(partial.words)
            self._frame += len(part)
            words += [word.later(self._start) for word in partial.words]
            tentative = partial.tentative
            if ends:
                words += self._end_utterance()
                tentative = ""
        return Partial(tuple(words), tentative)

    def _parts(self, log_probs: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
        """Cut (T, V) where an utterance ends; whether it does at the end of each part."""
        first = 0
        for t, blank in enumerate(self._bias(log_probs).argmax(1) == 0):
            self._blanks = self._blanks + 1 if blank else 0
            self._heard = self._heard or not blank
            if self._heard and self._blanks == self._pause:
                yield log_probs[first : t + 1], True
                first = t + 1
        yield log_probs[first:], False

    def _begin_utterance(self) -> None:
        self._state, self._start = self._decoder.start(), self._frame * self._frame_seconds
        self._given, self._heard = 0, False

    def _end_utterance(self) -> list[Word]:
        """The words that the decoder has kept back."""
        words = self._decoder.finish(self._state)[0].words[self._given :]
        moved = [word.later(self._start) for word in words]
        self._begin_utterance()
        return moved


class ModelSource:
    """The emissions of a model that hears no more than a few frames ahead: exactly those of the whole.

    Raises:
        ConfigError: the model needs the whole utterance.
    """

    def __init__(self, engine: Any):
        self._model = engine.model
        if not hasattr(self._model, "start"):
            raise ConfigError("An exported model keeps nothing between two runs.")
        self._engine, self._state = engine, self._model.start()
        self.latency = (1 + getattr(self._model.encoder, "lookahead", 0)) * self._model.frame_seconds

    def step(self, samples: np.ndarray) -> np.ndarray:
        return self._engine.step(samples, self._state)

    def finish(self) -> np.ndarray:
        return self._engine.finish(self._state)


class WindowSource:
    """The emissions of any model, run in overlapping windows: nearly those of the whole.

    Args:
        recognizer: whose model it is.
        chunk: seconds of each window that are kept.
        ahead: seconds after them that are heard besides; as many as `CONTEXT` before them.
    """

    def __init__(self, recognizer: Recognizer, chunk: float, ahead: float):
        rate, frame_seconds = recognizer.sample_rate, recognizer.model.frame_seconds
        self._recognizer, self._heard = recognizer, False
        self._windows = Windows(rate, frame_seconds, chunk, CONTEXT, ahead=ahead)
        self._none = np.zeros((0, len(recognizer.pipeline.tokenizer)), np.float32)
        self.latency = chunk + ahead

    def step(self, samples: np.ndarray) -> np.ndarray:
        self._heard = self._heard or bool(len(samples))
        pieces = self._windows.add(np.asarray(samples, np.float32))
        return np.concatenate([self._none, *(piece_emissions(self._recognizer, piece) for piece in pieces)])

    def finish(self) -> np.ndarray:
        return piece_emissions(self._recognizer, self._windows.close()) if self._heard else self._none


def make_stream(recognizer: Recognizer, endpoint: float | None, chunk: float | None, ahead: float) -> Stream:
    """A stream that a recognizer hears; see `Recognizer.stream`."""
    decoder = recognizer.pipeline.decoder
    if not hasattr(decoder, "step"):
        raise ConfigError(f"The decoder {type(decoder).__name__} has no step(): greedy and beam can hear live.")
    if endpoint is not None and endpoint <= 0:
        raise ConfigError(f"endpoint={endpoint}: must be above 0, or null.")
    if chunk is None:
        source: Source = ModelSource(recognizer.engine)
    elif chunk <= 0 or ahead < LEAST_AHEAD:
        raise ConfigError(f"chunk={chunk} must be above 0, and ahead={ahead} {LEAST_AHEAD} s or more.")
    else:
        source = WindowSource(recognizer, chunk, ahead)
    return Stream(source, decoder, recognizer.model.frame_seconds, endpoint)
