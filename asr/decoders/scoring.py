"""All that scores a prefix beside its emissions: language models, lexicon, hotwords, lengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asr.decoders.greedy import Spelling
from asr.decoders.hotwords import Hotwords
from asr.decoders.lexicon import ROOT, Lexicon, build_lexicon
from asr.decoders.prefix import NEVER
from asr.errors import ConfigError
from asr.lm.ngram import Ngram

UNKNOWN, END = 0, 2
"""The numbers of <unk> and </s> in every n-gram model."""


class NgramArrays(NamedTuple):
    """What `asr.lm.ngram.step` takes."""

    first: np.ndarray
    words: np.ndarray
    log_probs: np.ndarray
    backoffs: np.ndarray
    suffixes: np.ndarray


class Scoring(NamedTuple):
    """All that scores a prefix beside its emissions; a part that is absent has weight 0 or arrays of length 0."""

    starts: np.ndarray
    """(V,) bool: whether a word begins with a label."""
    spelled: np.ndarray
    """(V + 1,) int32: the characters of label c are codes[spelled[c]] … codes[spelled[c + 1] - 1]."""
    codes: np.ndarray
    lexicon: Lexicon
    """Its `words` are numbers in the word model."""
    loans: np.ndarray
    """(N,) float64: weighted score, out of context, of the best word under way at each node; 0 at the root."""
    lm: NgramArrays
    label_lm: NgramArrays
    label_words: np.ndarray
    """(V,) int32: the labels' numbers in the label model."""
    hotwords: Hotwords
    knows_words: bool
    open_vocabulary: bool
    lm_weight: float
    label_lm_weight: float
    word_score: float
    label_score: float
    unknown_score: float
    unknown_loan: float
    """Likewise for a word outside the lexicon; where no words are known, all are and cost nothing."""
    beam: int
    beam_threshold: float
    label_threshold: float
    recombine: bool
    """Whether to keep only the better of two prefixes with the same future, for the best hypothesis alone."""


def known_words(
    lexicon: list[str] | None, hotwords: Iterable[tuple[str, ...]], model: Ngram | None, open_vocabulary: bool
) -> list[str]:
    """The words that cost no `unknown_score`: those of the lexicon, else of the model, and of the hotwords."""
    vocabulary = model.vocabulary[END + 1 :] if model and (lexicon is None or open_vocabulary) else []
    words = list(dict.fromkeys([*(lexicon or ()), *vocabulary]))
    return list(dict.fromkeys([*words, *(word for phrase in hotwords for word in phrase)])) if words else []


def compile_words(
    words: list[str], model: Ngram | None, spellings: list[str], tokenizer: Spelling,
    open_vocabulary: bool, lm_weight: float, unknown_score: float,
) -> dict[str, Any]:  # fmt: skip
    """What `Scoring` holds about words."""
    numbers = model.ids if model else {}
    trie = build_lexicon(words, spellings, tokenizer.word_starts)
    ids = np.array([numbers.get(word, UNKNOWN) for word in words] or [UNKNOWN], np.int32)
    scores = lm_weight * model.log_probs[ids + 1].astype(np.float64) if model else np.zeros(len(ids))
    unknown_loan = 0.0
    if words:
        unknown_loan = unknown_score + (lm_weight * float(model.log_probs[UNKNOWN + 1]) if model else 0.0)
        unknown_loan = unknown_loan if open_vocabulary else NEVER
    loans = np.maximum(trie.best(scores), unknown_loan)
    loans[ROOT] = 0.0
    return {
        "lexicon": trie._replace(words=np.where(trie.words >= 0, ids[trie.words], -1).astype(np.int32)),
        "loans": loans,
        "unknown_loan": unknown_loan,
        "knows_words": bool(words),
    }


def check_words(known: list[str], spellings: list[str], word_starts: Sequence[bool]) -> None:
    """Raise a ConfigError if the words of a model can't be spelled, or are rather the labels themselves."""
    if not known:
        raise ConfigError("decoder.lm: none of its words can be spelled with the tokenizer's labels.")
    inside = {spelling for spelling, starts in zip(spellings, word_starts, strict=True) if not starts}
    if inside.issuperset(known):
        raise ConfigError(
            f"decoder.lm: all its words are labels of the tokenizer, such as '{known[0]}'. A model of labels is "
            "decoder.label_lm."
        )


def check_spelling(words: Iterable[str], spellings: list[str], key: str) -> None:
    """Raise a ConfigError that names a word with a character that no label has."""
    spellable = set("".join(spellings))
    for word in words:
        if not spellable.issuperset(word):
            letter = next(letter for letter in word if letter not in spellable)
            raise ConfigError(f"decoder.{key}: '{word}' cannot be spelled: no label has '{letter}'.")


def label_numbers(model: Ngram | None, tokenizer: Spelling) -> np.ndarray:
    """(V,) int32: the tokenizer's labels in a model over labels."""
    labels = [label.replace(" ", "<space>") for label in tokenizer.labels]
    if model is None:
        return np.zeros(len(labels), np.int32)
    missing = [label for label in labels[1:] if model.ids.get(label, UNKNOWN) <= END]
    if len(missing) > len(labels) // 2:
        raise ConfigError(
            f"decoder.label_lm: it does not know {len(missing)} of the tokenizer's {len(labels) - 1} labels, such "
            f"as '{missing[0]}'. Train it with unit=labels and this recognizer; a model of words is decoder.lm."
        )
    return np.array([model.ids.get(label, UNKNOWN) for label in labels], np.int32)


def load_model(model: Any, key: str, unit: str) -> Ngram | None:
    """The n-gram model that an option gives or names.

    Raises:
        ConfigError: it is over another unit.
    """
    if model is None:
        return None
    found = model if isinstance(model, Ngram) else Ngram.load(Path(model))
    if not isinstance(model, Ngram) and Path(model).is_file():
        found = replace(found, unit=unit)  # an ARPA file does not say
    if found.unit != unit:
        raise ConfigError(f"decoder.{key}: a model of {found.unit}, but here goes one of {unit}.")
    return found


def arrays_of(model: Ngram | None) -> NgramArrays:
    """A model's arrays, or empty ones of the same types."""
    if model:
        return NgramArrays(*model.arrays)
    none = np.zeros(0, np.int32)
    arrays = (none, none.copy(), none.astype(np.float32), none.astype(np.float32), none.copy())
    for array in arrays:
        array.flags.writeable = False  # as a model's: to numba that is a type of its own
    return NgramArrays(*arrays)


def read_lexicon(lexicon: Any) -> list[str] | None:
    """The words of a list, or of a file with one in each line."""
    if lexicon is None or not isinstance(lexicon, (str, Path)):
        return None if lexicon is None else list(lexicon)
    # what follows a word, such as its spelling in Kaldi's or flashlight's lexicons, is not needed
    return list(dict.fromkeys(line.split()[0] for line in _read_lines(lexicon, "lexicon")))


def read_hotwords(
    hotwords: Any, weight: float, tokenizer: Spelling, spellings: list[str]
) -> dict[tuple[str, ...], float]:
    """Hotwords, as sequences of words, with their weights."""
    given: dict[str, float | None] = {}
    if isinstance(hotwords, (str, Path)):
        for line in _read_lines(hotwords, "hotwords"):
            phrase, _, own = line.partition("\t")
            try:
                given[phrase.strip()] = float(own) if own.strip() else None
            except ValueError:
                raise ConfigError(f"decoder.hotwords: {hotwords}: '{own}' is not a weight.") from None
    else:
        given = dict(hotwords) if isinstance(hotwords, Mapping) else dict.fromkeys(hotwords or ())
    phrases = {}
    for phrase, own_weight in given.items():
        if unknown := tokenizer.unknown(phrase):
            raise ConfigError(f"decoder.hotwords: '{phrase}' cannot be spelled: no label has '{unknown[0]}'.")
        spelled = [""]
        for label in tokenizer.encode(phrase):
            if tokenizer.word_starts[label]:
                spelled.append("")
            spelled[-1] += spellings[label]
        phrases[tuple(word for word in spelled if word)] = float(weight if own_weight is None else own_weight)
    return phrases


def _read_lines(path: Any, key: str) -> list[str]:
    try:
        lines = [line.strip() for line in Path(path).read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"decoder.{key}: {path} cannot be read ({error}).") from None
    if not any(lines):
        raise ConfigError(f"decoder.{key}: {path} is empty.")
    return [line for line in lines if line]
