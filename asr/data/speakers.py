"""Which speakers are held out of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asr.errors import ConfigError, DataError
from asr.types import Utterance


def held_out(utterances: Sequence[Utterance], share: float, fold: int = 0, seed: int = 0) -> np.ndarray:
    """(U,) booleans: the utterances of `share` of the speakers, shuffled by `seed`.

    Fold k takes the k-th such share, so `share=0.25` has the folds 0 to 3 that cover all speakers. An utterance
    without a speaker counts as a speaker of its own. Where a share is less than a speaker, a fold is one speaker.
    """
    names = [u.speaker if u.speaker is not None else f"utterance {u.id}" for u in utterances]
    speakers = sorted(set(names))
    if len(speakers) < 2:
        raise DataError(
            "Cannot hold out speakers: the training manifest names only one. Give data.validation=FILE, "
            "or data.validation_speakers=0 to train on everything."
        )
    folds = min(max(1, round(1 / share)), len(speakers))
    if not 0 <= fold < folds:
        raise ConfigError(f"data.validation_fold={fold}: with data.validation_speakers={share} it is 0 to {folds - 1}.")
    order = [speakers[k] for k in np.random.default_rng(seed).permutation(len(speakers))]
    size = max(1.0, len(order) * share)
    start, stop = (round(size * edge) for edge in (fold, fold + 1))
    held = set(order[start : min(stop, start + len(order) - 1)])  # one is left to train on
    return np.array([name in held for name in names])
