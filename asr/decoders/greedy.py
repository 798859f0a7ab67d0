"""Best-path decoding, offline and streaming: the likeliest label of every frame, repetitions merged, blanks removed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from asr.decoders.bias import Bias, require_finite
from asr.types import Emissions, Hypothesis, Partial, Word


class Spelling(Protocol):
    """What a decoder needs of a tokenizer; label 0 is blank."""

    labels: list[str]
    word_starts: list[bool]

    def encode(self, text: str) -> list[int]: ...
    def decode(self, labels: list[int]) -> str: ...
    def unknown(self, text: str) -> list[str]: ...


class Greedy:
    """Best-path decoding (Graves et al., ICML 2006, section 3.2), with word times and confidences.

    A label lasts over the frames of its run. Its confidence is the highest posterior among them; a word's is the
    geometric mean over its labels. A word ends after its last label's run. It starts with its first label's run, or,
    where no blank parts it from the word before, with that of the space between them: in fluent speech the space is
    emitted while the next word has begun. Times are as coarse as the emission frames; CTC emits a label late in its
    sound rather than over the whole of it. The hypothesis' score is the log-probability of the best path.

    Args:
        tokenizer: turns labels into text.
        blank_penalty, label_prior, prior_scale: what is taken off the emissions first, as in `Bias`.

    Raises:
        ConfigError: an option is out of range, or the prior does not fit the tokenizer.
    """

    def __init__(
        self,
        tokenizer: Spelling,
        blank_penalty: float = 0.0,
        label_prior: Any = None,
        prior_scale: float = 0.3,
    ):
        self.tokenizer = tokenizer
        self.bias = Bias(tokenizer.labels, blank_penalty, label_prior, prior_scale)

    def __call__(self, emissions: Emissions) -> list[list[Hypothesis]]:
        """(B, T, V) log-probabilities → the one best hypothesis of each utterance.

        Raises:
            DataError: an emission is not a number.
        """
        emissions = emissions.numpy()
        best, scores = self._best(np.asarray(emissions.log_probs))
        found = []
        for path, score, length in zip(best, scores, emissions.lengths, strict=True):
            state = self.start()
            self._take(path[:length], score[:length], emissions.frame_seconds, state)
            found.append(self.finish(state))
        return found

    def start(self) -> GreedyState:
        """The state of a stream of which nothing was heard."""
        return GreedyState()

    def step(self, emissions: Emissions, state: GreedyState) -> Partial:
        """Take the next (1, T, V) log-probabilities of a stream; the state is changed.

        Returns:
            the words that have ended, because another one has begun, and the rest as it looks now.
        """
        self._take(*self._best(emissions.single()), emissions.frame_seconds, state)
        starts = [k for k, run in enumerate(state.runs) if k and self.tokenizer.word_starts[run.label]]
        words = self._words(state, starts[-1]) if starts else ()
        return Partial(words, " ".join(self.tokenizer.decode([run.label for run in state.runs]).split()))

    def finish(self, state: GreedyState) -> list[Hypothesis]:
        """End the stream: the best hypothesis of all of it."""
        self._words(state, len(state.runs))
        text = " ".join(self.tokenizer.decode(state.labels).split())
        return [Hypothesis(text, tuple(state.labels), state.score, tuple(state.words))]

    def _best(self, log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(…, V) → each frame's likeliest label (…), and its log-probability (…)."""
        log_probs = self.bias(log_probs)
        best = log_probs.argmax(-1)
        return best, np.take_along_axis(log_probs, best[..., None], -1)[..., 0]

    def _take(self, path: np.ndarray, scores: np.ndarray, frame_seconds: float, state: GreedyState) -> None:
        require_finite(scores, state.frame)
        state.frame_seconds = frame_seconds
        if not len(path):
            return
        state.score += float(scores.sum())
        starts = np.flatnonzero(np.diff(path, prepend=-1))
        stops, peaks = np.append(starts[1:], len(path)), np.maximum.reduceat(scores, starts)
        for label, start, stop, peak in zip(path[starts].tolist(), starts, stops, peaks, strict=True):
            if start == 0 and label == state.last:  # the run goes on
                if label:
                    run = state.runs[-1]
                    run.end, run.peak = state.frame + int(stop), max(run.peak, float(peak))
            elif label:
                state.runs.append(Run(label, state.frame + int(start), state.frame + int(stop), float(peak)))
        state.last, state.frame = int(path[-1]), state.frame + len(path)

    def _words(self, state: GreedyState, stop: int) -> tuple[Word, ...]:
        """Move the first `stop` runs, which are whole words, into the state's words."""
        runs, state.runs = state.runs[:stop], state.runs[stop:]
        labels = [run.label for run in runs]
        starts, ends, peaks = (np.array([getattr(run, key) for run in runs]) for key in ("start", "end", "peak"))
        words = collect_words(labels, starts, ends, peaks, self.tokenizer, state.frame_seconds, state.before)
        state.before = runs[-1].end if runs else state.before
        state.labels += labels
        state.words += words
        return words


@dataclass
class Run:
    """Successive frames of a label; ends with the frame before `end`."""

    label: int
    start: int
    end: int
    peak: float
    """The highest log-posterior among them."""


@dataclass
class GreedyState:
    """Where a stream is."""

    frame: int = 0
    frame_seconds: float = 0.0
    score: float = 0.0
    last: int = 0
    """The label of the last frame."""
    runs: list[Run] = field(default_factory=list)
    """Of labels whose word may go on."""
    labels: list[int] = field(default_factory=list)
    """Those before."""
    words: list[Word] = field(default_factory=list)
    before: int = -1
    """The frame after the last of these labels."""


def collect_words(
    labels: list[int],
    starts: np.ndarray,
    ends: np.ndarray,
    log_posteriors: np.ndarray,
    tokenizer: Spelling,
    frame_seconds: float,
    before: int = -1,
) -> tuple[Word, ...]:
    """Group labels (L,) with their frames (L,), (L,) and log-posteriors (L,) into words.

    `before` is the frame after the last of a label that came before them, -1 if there was none.
    """
    words, word_starts = [], tokenizer.word_starts
    edges = [k for k, label in enumerate(labels) if k == 0 or word_starts[label]] + [len(labels)]
    for first, stop in itertools.pairwise(edges):
        # a label that spells nothing, such as the space between words, is no part of the word's end or confidence
        spoken = [k for k in range(first, stop) if tokenizer.decode([labels[k]]).strip()]
        if spoken:
            text = tokenizer.decode(labels[first:stop]).strip()
            confidence = float(np.exp(np.mean(log_posteriors[spoken])))
            is_fluent = all(starts[k] == (ends[k - 1] if k else before) for k in range(first, spoken[0] + 1))
            start = starts[first if is_fluent else spoken[0]] * frame_seconds
            end = ends[spoken[-1]] * frame_seconds
            words.append(Word(text, round(float(start), 3), round(float(end), 3), confidence))
    return tuple(words)
