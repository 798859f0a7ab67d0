"""What is taken off the emissions ahead of a search: a penalty on blank, and the labels' prior."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from asr.errors import ConfigError, DataError


class Bias:
    """Turns posteriors into what a search should rank by, a distribution again:

        p'(k | x_t) ∝ p(k | x_t) / prior(k)^prior_scale · exp(-blank_penalty [k is blank])

    CTC learns to emit blank almost everywhere, and where it is unsure, blank wins: words are lost. A penalty on blank
    (the one of icefall and WeNet) trades those deletions for insertions. The prior takes off what the model expects of
    each label before it hears anything (Miao et al., arXiv 1507.08240; Huang et al., arXiv 2406.02560).

    Args:
        labels: of the tokenizer, blank first.
        blank_penalty: in natural logarithms; below 0, a reward.
        label_prior: the probability of each label: a mapping, or a JSON file of `label_prior`; `None`: all alike.
        prior_scale: of its logarithms, 0 or more.

    Raises:
        ConfigError: an option is out of range, or the prior is of other labels.
    """

    def __init__(self, labels: list[str], blank_penalty: float, label_prior: Any, prior_scale: float):
        if not math.isfinite(blank_penalty):
            raise ConfigError(f"decoder.blank_penalty={blank_penalty}: must be a finite number.")
        if not 0 <= prior_scale < math.inf:
            raise ConfigError(f"decoder.prior_scale={prior_scale}: must be 0 or more.")
        self.offsets = np.zeros(len(labels), np.float32)
        if label_prior is not None:
            prior = read_prior(label_prior)
            if {*prior} != {*labels}:
                raise ConfigError(
                    "decoder.label_prior: is of other labels than the tokenizer's. Make it with this recognizer: "
                    "label_prior checkpoint=… manifest=… out=…"
                )
            self.offsets += prior_scale * np.log([prior[label] for label in labels]).astype(np.float32)
        self.offsets[0] += blank_penalty

    def __call__(self, log_probs: np.ndarray) -> np.ndarray:
        """(…, V) natural log-probabilities → the same, less the bias."""
        if not self.offsets.any():
            return log_probs
        scores = log_probs - self.offsets
        scores -= scores.max(-1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def require_finite(peaks: np.ndarray, first: int = 0) -> None:
    """Raise a DataError if the highest log-probability of a frame, (T,), is no finite number; `first` is its number."""
    if not np.isfinite(peaks).all():
        frame = first + int(np.flatnonzero(~np.isfinite(peaks))[0])
        raise DataError(f"decoder: frame {frame} has no finite log-probability: the model's output is broken.")


def read_prior(source: Any) -> Mapping[str, float]:
    """The probability of each label.

    Raises:
        ConfigError: it cannot be read, or holds what is no probability.
    """
    if not isinstance(source, Mapping):
        try:
            source = json.loads(Path(source).read_text("utf-8"))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"decoder.label_prior={source}: cannot be read ({error}).") from None
    sound = isinstance(source, Mapping) and all(type(p) in (int, float) and 0 < p <= 1 for p in source.values())
    if not sound:
        raise ConfigError("decoder.label_prior: must give each label a probability above 0.")
    return source
