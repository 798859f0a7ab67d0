"""Sentences drawn from a language model, for a look at what it has learnt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asr.errors import ConfigError
from asr.jit import jit
from asr.lm.base import SPACE
from asr.lm.ngram import Ngram, step

BOS, EOS = 1, 2
LONGEST = 200
"""Words at which a sentence is cut."""


def sample(model: Ngram, n: int, temperature: float = 1.0, seed: int = 0) -> list[str]:
    """`n` sentences drawn from an n-gram model.

    Args:
        model: the model.
        n: how many; the same seed draws the same ones.
        temperature: below 1 likelier sentences than the model's own, above 1 less likely ones.
        seed: of the draws.

    Raises:
        ConfigError: the temperature is 0 or less.
    """
    check_temperature(temperature)
    random = np.random.default_rng(seed)
    log_probs, states = np.empty(len(model.vocabulary)), np.empty(len(model.vocabulary), np.int64)
    sentences = []
    for _ in range(n):
        sentence: list[str] = []
        state = model.start
        while len(sentence) < LONGEST:
            _step_all(*model.arrays, state, log_probs, states)
            log_probs[BOS] = -np.inf
            weights = np.exp((log_probs - log_probs.max()) / temperature)
            word = int(random.choice(len(weights), p=weights / weights.sum()))
            if word == EOS:
                break
            sentence.append(model.vocabulary[word])
            state = states[word]
        sentences.append(spell(sentence, model.unit, model.vocabulary))
    return sentences


def spell(tokens: Sequence[str], unit: str, vocabulary: Sequence[str]) -> str:
    """The text of words, or of labels where they show how they go together: by spaces of their own."""
    has_spaces = any(token == SPACE or token.startswith("▁") for token in vocabulary)
    if unit == "words" or not has_spaces:
        return " ".join(tokens)
    return "".join(tokens).replace(SPACE, " ").replace("▁", " ").strip()


def check_temperature(temperature: float) -> None:
    """Raise a ConfigError if a temperature is 0 or less."""
    if temperature <= 0:
        raise ConfigError(f"temperature={temperature}: must be above 0.")


@jit
def _step_all(first, words, log_probs, backoffs, suffixes, state, scores, states):
    for word in range(len(scores)):
        scores[word], states[word] = step(first, words, log_probs, backoffs, suffixes, state, word)
