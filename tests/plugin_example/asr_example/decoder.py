"""Best-path decoding with fewer blanks."""

from dataclasses import replace

import numpy as np

from asr.decoders import Greedy
from asr.types import Emissions, Hypothesis


class EagerGreedy:
    """Best-path decoding in which blank is made less likely: fewer deletions, more insertions.

    Args:
        tokenizer: turns labels into text.
        penalty: subtracted from the log-probability of blank.
    """

    def __init__(self, tokenizer, penalty: float = 0.5):
        self.greedy, self.penalty = Greedy(tokenizer), penalty

    def __call__(self, emissions: Emissions) -> list[list[Hypothesis]]:
        log_probs = np.array(emissions.log_probs)
        log_probs[..., 0] -= self.penalty
        return self.greedy(replace(emissions, log_probs=log_probs))
