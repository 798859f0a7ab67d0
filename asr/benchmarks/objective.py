"""How likely a text is, computed exactly, not by a search."""

from __future__ import annotations

import numpy as np


def text_log_prob(log_probs: np.ndarray, labels: list[int], space: int) -> float:
    """Natural log-probability of a text: the sum over all alignments that read as it, by CTC's forward algorithm.

    How many spaces stand between words, before and behind them makes no difference to what is read, so all are summed
    (one or more between words, any number at the ends), which is what a search over words looks for.

    Args:
        log_probs: (T, V) natural logarithms; label 0 is blank.
        labels: of the text, one space between words.
        space: its label.
    """
    spaced = [space, *labels, space] if labels else [space]
    states = np.zeros(2 * len(spaced), np.int64)
    states[::2] = spaced  # each label and the blank behind it
    skips = np.full(len(states), -np.inf)
    skips[2::2] = np.where(states[2::2] != states[:-2:2], 0, -np.inf)
    again = np.where(states == space, 0, -np.inf)  # from the blank behind a space, another space
    scores = np.full(len(states) + 3, -np.inf)  # two before the first, one behind the last
    alpha = scores[2:-1]
    for t, frame in enumerate(log_probs.astype(np.float64)):
        if t == 0:
            alpha[: 3 if labels else 2] = 0
        else:
            before, skipped, behind = scores[1:-2], scores[:-3] + skips, scores[3:] + again
            alpha[:] = np.logaddexp(np.logaddexp(alpha, before), np.logaddexp(skipped, behind))
        alpha += frame[states]
    if not len(log_probs):
        return 0.0 if not labels else -np.inf
    return float(np.logaddexp.reduce(alpha[-4:]))
