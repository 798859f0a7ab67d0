"""What a beam search is to find, by definition: every alignment summed one by one, and what its sequences earn."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

WORD_MODEL = {  # log10 probabilities and back-off weights
    ("<unk>",): (-1.5, 0.0), ("<s>",): (-99.0, -0.4), ("</s>",): (-0.8, 0.0), ("a",): (-0.5, -0.3),
    ("ab",): (-0.9, -0.2), ("b",): (-0.7, -0.1), ("<s>", "a"): (-0.2, -0.05), ("<s>", "ab"): (-0.6, -0.15),
    ("a", "b"): (-0.25, -0.5), ("b", "</s>"): (-0.3, 0.0), ("a", "a"): (-1.1, -0.12), ("<s>", "a", "b"): (-0.1, 0.0),
    ("a", "b", "</s>"): (-0.05, 0.0),
}  # fmt: skip
LABEL_MODEL = {
    ("<unk>",): (-2.0, 0.0), ("<s>",): (-99.0, -0.2), ("</s>",): (-0.9, 0.0), ("a",): (-0.4, -0.3),
    ("b",): (-0.6, -0.35), ("<space>",): (-0.8, -0.15), ("a", "b"): (-0.2, 0.0), ("b", "<space>"): (-0.25, 0.0),
    ("<s>", "b"): (-0.3, 0.0),
}  # fmt: skip


def ngram_score(model, words) -> float:
    """Natural log-probability by the definition of back-off."""
    order = max(map(len, model))

    def log10(history, word):
        if (*history, word) in model:
            return model[(*history, word)][0]
        assert history, word
        return model.get(history, (0, 0.0))[1] + log10(history[1:], word)

    vocabulary = {key[0] for key in model if len(key) == 1}
    sequence = ["<s>", *(word if word in vocabulary else "<unk>" for word in words), "</s>"]
    total = sum(log10(tuple(sequence[max(0, k - order + 1) : k]), sequence[k]) for k in range(1, len(sequence)))
    return total * math.log(10)


def all_sequences(emissions) -> dict[tuple[int, ...], float]:
    """Each label sequence's log-probability, summed over every alignment one by one.

    Label 1 is a space: one counts between words, and none before them.
    """
    log_probs = emissions.log_probs[0].astype(np.float64)
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        labels = tuple(label for label, _ in itertools.groupby(path) if label)
        labels = tuple(c for k, c in enumerate(labels) if c != 1 or (k and labels[k - 1] != 1))
        score = sum(log_probs[t, label] for t, label in enumerate(path))
        if score > -np.inf:
            found[labels] = np.logaddexp(found.get(labels, -np.inf), score)
    return found


def best_of_each_text(scored, tokenizer) -> dict:
    """Of the sequences that spell the same text the one with the highest score."""
    best = {" ".join(tokenizer.decode(list(labels)).split()): labels for labels in sorted(scored, key=scored.get)}
    return {labels: scored[labels] for labels in best.values()}


def occurrences(phrase, words) -> int:
    phrase = phrase.split()
    return sum(words[k : k + len(phrase)] == phrase for k in range(len(words)))


def fused(labels, tokenizer, options) -> tuple[float, float] | None:
    """What a sequence earns beside its acoustic score, in all and by language models; None if it is forbidden."""
    words = tokenizer.decode(list(labels)).split()
    known = None
    if "lexicon" in options or "lm" in options:
        known = set(options.get("lexicon", ()))
        if "lexicon" not in options or options.get("open_vocabulary", True):
            known |= {key[0] for key in WORD_MODEL if len(key) == 1} if "lm" in options else set()
        known |= {word for phrase in options.get("hotwords", ()) for word in phrase.split()}
    unknown = sum(word not in known for word in words) if known is not None else 0
    if unknown and not options.get("open_vocabulary", True):
        return None
    lm = 0.0
    if "lm" in options:
        # a lexicon's word that the model does not have is unknown to the model only, and vice versa
        lm += options.get("lm_weight", 0.5) * ngram_score(WORD_MODEL, words)
    if "label_lm" in options:
        spelled = [tokenizer.labels[label].replace(" ", "<space>") for label in labels]
        lm += options["label_lm_weight"] * ngram_score(LABEL_MODEL, spelled)
    bonus = options.get("word_score", 0.0) * len(words) + options.get("label_score", 0.0) * len(labels)
    bonus += options.get("unknown_score", -5.0) * unknown
    hotwords: Any = options.get("hotwords", {})
    hotwords = hotwords if isinstance(hotwords, dict) else dict.fromkeys(hotwords, options["hotword_weight"])
    bonus += sum(weight * occurrences(phrase, words) for phrase, weight in hotwords.items())
    return bonus + lm, lm
