"""Training of n-gram models: interpolated modified Kneser-Ney smoothing.

Chen & Goodman, "An empirical study of smoothing techniques for language modeling", Harvard TR-10-98, 1998; with the
choices of KenLM's `lmplz` (Heafield et al., ACL 2013), so that both give the same model of a text. (One slip of lmplz
is not repeated: it estimates the discounts with the plain count of each order's last n-gram in place of the adjusted
one, which shows in texts of a few hundred words only.)
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asr.errors import ConfigError, DataError
from asr.lm.base import BOS, EOS, SPECIAL, UNKNOWN
from asr.lm.ngram import FLOOR, Ngram

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts of a text that is too small or too regular to estimate them from."""


class KneserNey:
    """Trains n-gram models by interpolated modified Kneser-Ney smoothing.

    p(w | h) = (a(hw) - D(a(hw))) / Σ a(h·) + γ(h) p(w | h'), where h' is h less its first word and, below it all,
    every word but `<s>` is equally likely. The adjusted count a is the number of different words ahead of an n-gram;
    of n-grams of the highest order, and of those that begin with `<s>`, it is the number of times they occur. Each
    order has three discounts D, for a = 1, 2 and more; γ(h) is what they and the pruned n-grams free.

    Args:
        order: the longest n-grams; 3 predicts a word from the two before it.
        prune: for each order the number of occurrences up to which n-grams are left out, such as `[0, 0, 1]` for
            trigrams that occur once; the last number holds for the higher orders too. They may not fall, and words
            are never left out. `None` keeps all.

    Raises:
        ConfigError: an option does not make sense.
    """

    def __init__(self, order: int = 3, prune: Sequence[int] | None = None) -> None:
        if order < 1:
            raise ConfigError(f"lm.order={order}: must be 1 or more.")
        self.order, self.prune = order, _thresholds(prune, order)

    def fit(
        self, sentences: Iterable[Sequence[str]], unit: str = "words", metadata: Mapping[str, Any] | None = None
    ) -> Ngram:
        """Learn a model from sentences, each a sequence of words.

        The text is gone through once and kept as four bytes a word; the work needs some eighty a word.

        Args:
            sentences: without `<s>` and `</s>`; the word `<unk>` stands for any unknown word.
            unit: what the words are: `words` or `labels`.
            metadata: kept with the model, beside the discounts, under `training`.

        Raises:
            DataError: there is no text, or `<s>` or `</s>` is in it.
        """
        text, vocabulary = _read(sentences)
        orders = _count(text, len(vocabulary), self.order)
        estimated = [_discounts(grams.adjusted) for grams in orders]
        discounts = [found or FALLBACK for found in estimated]
        training = {
            "method": "interpolated modified Kneser-Ney",
            "prune": self.prune,
            "discounts": [list(found) for found in discounts],
            "fallback": [n for n, found in enumerate(estimated, 1) if found is None],
        }
        kept = [grams.counts > least for grams, least in zip(orders, self.prune, strict=True)]
        kept[0][:] = True  # <unk> and <s>, too
        probs, backoffs = _smooth(orders, kept, discounts)
        return Ngram(
            **_arrays(orders, kept, probs, backoffs),
            order=self.order,
            vocabulary=vocabulary,
            unit=unit,
            metadata={**(metadata or {}), "training": training},
        )


def _thresholds(prune: Sequence[int] | None, order: int) -> list[int]:
    """One threshold for each order."""
    values = [0] if prune is None else list(prune) if isinstance(prune, (list, tuple)) else []
    if not values or any(type(value) is not int or value < 0 for value in values):
        raise ConfigError(f"lm.prune={prune}: must be counts, 0 or more, one for each order: lm.prune=[0,0,1].")
    if len(values) > order:
        raise ConfigError(f"lm.prune={values}: has {len(values)} thresholds, but lm.order={order}.")
    if values[0]:
        raise ConfigError(f"lm.prune={values}: words are never left out, so the first number must be 0.")
    if values != sorted(values):
        raise ConfigError(f"lm.prune={values}: must not fall, or kept n-grams would lose their suffixes.")
    return values + values[-1:] * (order - len(values))


def _read(sentences: Iterable[Sequence[str]]) -> tuple[np.ndarray, list[str]]:
    """(T,) int32 word ids, each sentence between `<s>` and `</s>`, and the vocabulary."""
    ids = _Ids({UNKNOWN: 0})
    text = array("i")
    for sentence in sentences:
        text.append(1)
        text.extend(map(ids.__getitem__, sentence))
        text.append(2)
    tokens = np.array(text, np.int32)
    if len(tokens) == 2 * np.count_nonzero(tokens == 1):
        raise DataError("The training text of the language model is empty. Look at train=…")
    for word in ids:
        if word in (BOS, EOS) or word.encode().split() != [word.encode()]:
            number = np.count_nonzero(tokens[: np.flatnonzero(tokens == ids[word])[0]] == 1)
            raise DataError(
                f"Sentence {number} of the training text has the word {word!r}. Take it out: {BOS} and {EOS} are put "
                "at its start and end by themselves, and words hold no white space."
            )
    return tokens, [*SPECIAL, *list(ids)[1:]]


class _Ids(dict[str, int]):
    """Gives each new word the next id, from 3."""

    def __missing__(self, word: str) -> int:
        self[word] = len(self) + 2
        return self[word]


@dataclass
class _Grams:
    """The different n-grams of one order, G of them, sorted by (context, last word)."""

    words: np.ndarray
    """(G,) int32: the last words' ids."""
    contexts: np.ndarray
    """(G,) int32: the context's row among those of the order below."""
    suffixes: np.ndarray
    """(G,) int32: the row, among those of the order below, of the n-gram less its first word."""
    counts: np.ndarray
    """(G,) int64: how often each occurs."""
    starts: np.ndarray
    """(G,) bool: those that begin with `<s>`."""
    adjusted: np.ndarray
    """(G,) int64: the adjusted counts."""


def _count(text: np.ndarray, size: int, order: int) -> list[_Grams]:
    """Count the n-grams of every order; one of order n is known by the row of its context and its last word."""
    zeros, words = np.zeros(size, np.int32), np.arange(size, dtype=np.int32)
    counts = np.bincount(text, minlength=size)
    adjusted = np.where(words == 1, 0, counts)  # <s> is never predicted
    orders = [_Grams(words, zeros, zeros, counts, words == 1, adjusted)]
    rows = text  # of the n-gram that begins at each place
    places = np.flatnonzero(text != 2)
    for n in range(2, order + 1):
        keys = rows[places] * np.int64(size) + text[places + n - 1]
        by_key = np.argsort(keys)
        keys = keys[by_key]
        new = np.ones(len(keys), np.bool_)
        new[1:] = keys[1:] != keys[:-1]
        first = np.flatnonzero(new)
        lower = orders[-1]
        contexts = (keys[first] // size).astype(np.int32)
        words = (keys[first] % size).astype(np.int32)
        del keys
        suffixes = rows[places[by_key[first]] + 1]
        counts = np.diff(np.append(first, len(places)))
        orders.append(_Grams(words, contexts, suffixes, counts, lower.starts[contexts], counts))
        # every n-gram has something ahead of it but those that start a sentence
        lower.adjusted = np.bincount(suffixes, minlength=len(lower.words))
        if n > 2:
            lower.adjusted[lower.starts] = lower.counts[lower.starts]
        rows = np.full(len(text), -1, np.int32)
        rows[places[by_key]] = np.cumsum(new, dtype=np.int32) - 1
        places = places[text[places + n - 1] != 2]
    return orders


def _discounts(adjusted: np.ndarray) -> tuple[float, float, float] | None:
    """D1, D2, D3+ by equation 26 of Chen & Goodman; `None` where the counts do not allow it."""
    n = np.bincount(np.minimum(adjusted, 5), minlength=6)
    if not n[1:4].all():
        return None
    y = n[1] / (n[1] + 2 * n[2])
    d1, d2, d3 = (float(k - (k + 1) * y * n[k + 1] / n[k]) for k in (1, 2, 3))
    return (d1, d2, d3) if 0 <= d1 <= 1 and 0 <= d2 <= 2 and 0 <= d3 <= 3 else None


def _smooth(
    orders: list[_Grams], kept: list[np.ndarray], discounts: list[tuple[float, float, float]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Probabilities of the n-grams of each order, and the back-off weights of those below the highest."""
    probs: list[np.ndarray] = [np.full(len(orders[0].words), 1 / (len(orders[0].words) - 1))]  # <s> is no prediction
    backoffs: list[np.ndarray] = []
    for grams, keep, amounts in zip(orders, kept, discounts, strict=True):
        discount = np.array([0.0, *amounts])[np.minimum(grams.adjusted, 3)]
        total = np.bincount(grams.contexts, grams.adjusted, len(probs[-1]))
        freed = np.bincount(grams.contexts, np.where(keep, discount, grams.adjusted), len(probs[-1]))
        backoff = np.divide(freed, total, out=np.ones(len(total)), where=total > 0)
        lower = probs[-1][grams.suffixes]
        probs.append((grams.adjusted - discount) / total[grams.contexts] + backoff[grams.contexts] * lower)
        backoffs.append(backoff)
    probs[1][1] = 1.0  # so that a sentence that is scored with its <s> scores the same
    return probs[1:], backoffs[1:]


def _arrays(
    orders: list[_Grams], kept: list[np.ndarray], probs: list[np.ndarray], backoffs: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """The arrays of an `Ngram`, of the n-grams that are kept."""
    words, parents, suffixes = [np.array([-1])], [np.empty(0, np.int32)], [np.zeros(1, np.int32)]
    nodes = np.zeros(len(orders[0].words), np.int32)  # of the rows of the order below
    size = 1
    for grams, keep in zip(orders, kept, strict=True):
        words.append(grams.words[keep])
        parents.append(nodes[grams.contexts[keep]])
        suffixes.append(nodes[grams.suffixes[keep]])
        nodes = size - 1 + np.cumsum(keep, dtype=np.int32)
        size += int(np.count_nonzero(keep))
    weights = [np.ones(1), *(weight[keep] for weight, keep in zip(backoffs, kept, strict=False))]
    likelihoods = [np.ones(1), *(prob[keep] for prob, keep in zip(probs, kept, strict=True))]
    contexts = sum(map(len, weights))
    return {
        "words": np.concatenate(words),
        "log_probs": np.log(np.clip(np.concatenate(likelihoods), 10**FLOOR, 1.0)),
        "backoffs": np.log(np.maximum(np.concatenate(weights), 10**FLOOR)),
        "first": 1 + np.searchsorted(np.concatenate(parents), np.arange(contexts + 1)),
        "suffixes": np.concatenate(suffixes),
    }
