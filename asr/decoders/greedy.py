"""Best-path decoding: the likeliest label of every frame, repetitions merged, blanks removed."""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import numpy as np

from asr.decoders.bias import Bias
from asr.types import Emissions, Hypothesis, Word


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
        """(B, T, V) log-probabilities as NumPy → the one best hypothesis of each utterance."""
        log_probs = self.bias(np.asarray(emissions.log_probs))
        best = log_probs.argmax(-1)
        scores = np.take_along_axis(log_probs, best[..., None], -1)[..., 0]
        return [
            [self._hypothesis(path[:length], score[:length], emissions.frame_seconds)]
            for path, score, length in zip(best, scores, emissions.lengths, strict=True)
        ]

    def _hypothesis(self, path: np.ndarray, scores: np.ndarray, frame_seconds: float) -> Hypothesis:
        if not len(path):
            return Hypothesis("", (), 0.0)
        starts = np.flatnonzero(np.diff(path, prepend=-1))
        ends = np.append(starts[1:], len(path))
        peaks = np.maximum.reduceat(scores, starts)
        keep = path[starts] != 0
        labels = [int(label) for label in path[starts][keep]]
        words = collect_words(labels, starts[keep], ends[keep], peaks[keep], self.tokenizer, frame_seconds)
        return Hypothesis(self.tokenizer.decode(labels).strip(), tuple(labels), float(scores.sum()), words)


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
