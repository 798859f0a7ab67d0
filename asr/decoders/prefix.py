"""What the beam search keeps of a prefix."""

from __future__ import annotations

import numpy as np

NEVER = -np.inf
PREFIX = np.dtype(
    [
        # which label sequence this is: a hash of it, of it less its last label, and that label
        ("key", np.uint64), ("parent", np.uint64), ("label", np.int32),
        # log-probability of all its alignments that end in blank, of those that end in its last label, and of both
        ("blank", np.float64), ("voiced", np.float64), ("total", np.float64),
        # what it has earned beside that; how much of it by language models; what is lent it until its word is complete
        ("bonus", np.float64), ("lm_score", np.float64), ("loan", np.float64),
        # where it is in the lexicon, the models and the hotwords; whether its last word has begun
        ("node", np.int32), ("lm", np.int32), ("label_lm", np.int32), ("hotword", np.int32), ("begun", np.bool_),
        # the same with its last word complete, once that was asked
        ("closed", np.bool_), ("closed_bonus", np.float64), ("closed_lm_score", np.float64),
        ("closed_lm", np.int32), ("closed_hotword", np.int32),
        # its best alignment that ends in blank: log-probability; last label's frames and peak; link to those before
        ("best_blank", np.float64), ("blank_start", np.int32), ("blank_end", np.int32), ("blank_peak", np.float64),
        ("blank_link", np.int32),
        # its best alignment that ends in its last label, likewise
        ("best_voiced", np.float64), ("voiced_start", np.int32), ("voiced_peak", np.float64), ("voiced_link", np.int32),
    ],
    align=True,
)  # fmt: skip

CANDIDATE = np.dtype(
    [
        # rank; the present prefix that it extends, with which label (0: with none)
        ("score", np.float64), ("source", np.int32), ("label", np.int32),
        # what it will have as a prefix
        ("voiced", np.float64), ("bonus", np.float64), ("lm_score", np.float64), ("loan", np.float64),
        ("node", np.int32), ("label_lm", np.int32), ("hotword", np.int32),
    ],
    align=True,
)  # fmt: skip
