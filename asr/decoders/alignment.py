"""Forced alignment: where in its audio each label of a known transcript lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from asr.errors import DataError
from asr.jit import jit


@dataclass(frozen=True)
class Alignment:
    """The likeliest CTC path that spells a sequence of L labels; a label lasts over the frames of its run."""

    starts: np.ndarray
    """(L,) int64: the frame with which each label begins."""
    ends: np.ndarray
    """(L,) int64: the frame after its last."""
    log_posteriors: np.ndarray
    """(L,) float64: each label's highest log-posterior among its frames."""
    score: float
    """The path's log-probability."""


def align(log_probs: np.ndarray, labels: Sequence[int] | np.ndarray) -> Alignment:
    """Find the likeliest path that spells the labels (Viterbi; Graves et al., ICML 2006, for the states).

    The path goes through S = 2 L + 1 states: the labels with a blank before, between and after them. A frame stays in
    its state, or goes on to the next or, if that is a blank between different labels, past it. It is exact for any
    length: scores are kept every K frames only, and from the last frame backwards the path is found anew between
    two such checkpoints, where it can have come through no more than 2 K states. With K ≈ (2 T S)^⅓ that takes
    about 6 (2 T S)^⅔ bytes besides the log-probabilities, and the time of the T S steps: for an hour (90,000 frames of
    40 ms, 50,000 labels) 40 MB and about ten seconds.

    Args:
        log_probs: (T, V) natural logarithms; label 0 is blank.
        labels: L ids, blanks not among them.

    Raises:
        DataError: there are too few frames for the labels, a log-probability is NaN, or no path has a probability
            above 0.
    """
    log_probs = np.ascontiguousarray(log_probs)
    ids = np.asarray(labels, np.int64).reshape(-1)
    frames = len(log_probs)
    repeated = np.flatnonzero(ids[1:] == ids[:-1]) + 1
    if np.isnan(log_probs).any():
        raise DataError("The log-probabilities are not numbers (NaN): the recognizer is broken, its training diverged.")
    if len(ids) and not 0 < ids.min() <= ids.max() < log_probs.shape[1]:
        raise DataError(f"Labels must be 1 to {log_probs.shape[1] - 1}, found {ids.min()} to {ids.max()}.")
    if frames < len(ids) + len(repeated):
        raise DataError(
            f"The transcript is too long for the audio: its {len(ids)} labels need {len(ids) + len(repeated)} frames "
            f"(a blank stands between {len(repeated)} pairs of equal ones), and there are {frames}."
        )
    if not frames:
        return Alignment(ids, ids, np.zeros(0), 0.0)
    states = np.zeros(2 * len(ids) + 1, np.int64)
    states[1::2] = ids
    barrier = np.full(len(states), -np.inf)  # added to the score of going past the state before
    barrier[3::2] = 0
    barrier[2 * repeated + 1] = -np.inf
    path, score = _best_path(log_probs, states, barrier)
    if score == -np.inf:
        raise DataError("The recognizer gives the transcript the probability 0.")
    # every label has its run of frames, for no path can pass one by
    starts = np.searchsorted(path, np.arange(1, len(states), 2))
    ends = np.searchsorted(path, np.arange(1, len(states), 2), side="right")
    emitted = log_probs[np.arange(frames), states[path]].astype(np.float64)
    peaks = np.array([emitted[start:end].max() for start, end in zip(starts, ends, strict=True)])
    return Alignment(starts, ends, peaks, score)


def _best_path(log_probs: np.ndarray, states: np.ndarray, barrier: np.ndarray) -> tuple[np.ndarray, float]:
    """(T, V), the label (S,) of each state → the state of each frame (T,), and the path's log-probability."""
    frames, count = len(log_probs), len(states)
    interval = max(1024, round((2 * frames * count) ** (1 / 3)))
    scores = np.full(count + 2, -np.inf)  # the two before the first state spare a test in the innermost loop
    scores[2:4] = log_probs[0, states[:2]]
    checkpoints = [scores]
    times = [*range(0, frames - 1, interval), frames - 1]
    for first, last in pairwise(times):
        checkpoints.append(_advance(checkpoints[-1], log_probs, states, barrier, first, last, 0, None))
    path = np.empty(frames, np.int64)
    path[-1] = count - 1 if count == 1 or checkpoints[-1][-1] >= checkpoints[-1][-2] else count - 2
    score = float(checkpoints.pop()[path[-1] + 2])
    for last, first in pairwise(times[::-1]):
        low = max(0, path[last] - 2 * (last - first))
        moves = np.zeros((last - first, path[last] + 1 - low), np.uint8)
        _advance(checkpoints.pop(), log_probs, states, barrier, first, last, low, moves)
        for t in range(last, first, -1):
            path[t - 1] = path[t] - moves[t - first - 1, path[t] - low]
    return path, score


@jit
def _advance(scores, log_probs, states, barrier, first, last, low, moves):
    """The scores (2 + S,) of the best paths to each state at frame `first` → at frame `last`.

    With moves (last - first, W), only those of the W states from `low` on; how many states the best path to each went
    forward is written there.
    """
    frames, count = len(log_probs), len(states)
    scores, following = scores.copy(), scores.copy()
    for t in range(first + 1, last + 1):
        # only states that can be reached by now, and from which the end can be reached in time
        begin, end = max(low, count - 2 * (frames - t)), min(count, 2 * t + 2)
        if moves is not None:
            end = min(end, low + moves.shape[1])
        frame = log_probs[t]
        for s in range(begin, end):
            stay, step, skip = scores[s + 2], scores[s + 1], scores[s] + barrier[s]
            best = max(stay, max(step, skip))
            following[s + 2] = best + frame[states[s]]
            if moves is not None:
                moves[t - first - 1, s - low] = 0 if best == stay else 1 if best == step else 2
        scores, following = following, scores
    return scores
