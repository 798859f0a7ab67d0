"""All that scores a prefix beside its emissions: language models, lexicon, hotwords, lengths."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asr.decoders.greedy import Spelling
from asr.decoders.hotwords import Hotwords
from asr.decoders.lexicon import ROOT, Lexicon, build_lexicon, unspellable
from asr.decoders.prefix import NEVER
from asr.errors import CheckpointError, ConfigError
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
    lexicon: list[str] | None,
    hotwords: Iterable[tuple[str, ...]],
    model: Ngram | None,
    spellings: list[str],
    tokenizer: Spelling,
    open_vocabulary: bool,
    lm_weight: float,
    unknown_score: float,
) -> dict[str, Any]:
    """What `Scoring` holds about words.

    Raises:
        ConfigError: a word of the lexicon cannot be spelled with the labels, or most of the model's cannot.
    """
    words = known_words(lexicon, hotwords, model, open_vocabulary)
    trie = build_lexicon(words, spellings, tokenizer.word_starts)
    if odd := set(unspellable(trie, words)):
        _check_spelling([word for word in lexicon or () if word in odd], words, odd, spellings)
        words = [word for word in words if word not in odd]
        trie = build_lexicon(words, spellings, tokenizer.word_starts)
    numbers = model.ids if model else {}
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


def _check_spelling(asked: list[str], words: list[str], odd: set[str], spellings: list[str]) -> None:
    word = asked[0] if asked else next(word for word in words if word in odd)
    missing = [letter for letter in word if letter not in set("".join(spellings))]
    why = f"no label has '{missing[0]}'" if missing else "in the tokenizer's labels it is more than one word"
    way = "Normalise it as the training text was." if missing else "Split it as the labels do."
    if asked:
        raise ConfigError(f"decoder.lexicon: '{word}' cannot be spelled: {why}. {way}")
    if len(odd) > len(words) / 2:
        raise ConfigError(
            f"decoder.lm: {len(odd)} of its {len(words)} words cannot be spelled, such as '{word}': {why}. "
            f"{way} A model of labels is decoder.label_lm."
        )


def check_unit(model: Ngram, spellings: list[str], word_starts: Sequence[bool]) -> None:
    """Raise a ConfigError if the words of a file that does not say what they are look like labels."""
    inside = {spelling for spelling, starts in zip(spellings, word_starts, strict=True) if not starts}
    if inside.issuperset(model.vocabulary[END + 1 :]):
        raise ConfigError(
            f"decoder.lm: all its words are labels of the tokenizer, such as '{model.vocabulary[-1]}'. A model of "
            "labels is decoder.label_lm."
        )


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
        ConfigError: there is none, or it is over another unit.
    """
    if model is None:
        return None
    if not isinstance(model, (str, Path, Ngram)):
        raise ConfigError(f"decoder.{key}={model}: must be the path of a language model.")
    try:
        found = model if isinstance(model, Ngram) else _open(str(model), os.stat(model).st_mtime_ns)
    except (OSError, CheckpointError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"decoder.{key}={model}: {reason}. It takes a folder of train_lm lm=ngram, or an ARPA file; other models "
            "rescore: decoder=rescored."
        ) from None
    if is_unmarked(model) and found.unit == "words":
        found = replace(found, unit=unit)
    if found.unit != unit:
        raise ConfigError(f"decoder.{key}: a model of {found.unit}, but here goes one of {unit}.")
    return found


def is_unmarked(model: Any) -> bool:
    """Whether a model is an ARPA file: those of other programs do not say what their words are."""
    return isinstance(model, (str, Path)) and Path(model).is_file()


@lru_cache(maxsize=4)
def _open(path: str, _changed: int) -> Ngram:
    return Ngram.load(path)


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
    if lexicon is None:
        return None
    if isinstance(lexicon, (str, Path)):
        # what follows a word, such as its spelling in Kaldi's or flashlight's lexicons, is not needed
        return list(dict.fromkeys(line.split()[0] for line in _read_lines(lexicon, "lexicon")))
    if not isinstance(lexicon, (list, tuple)):
        raise ConfigError(f"decoder.lexicon={lexicon}: must be a file, or a list of words.")
    for word in lexicon:
        if not isinstance(word, str) or len(word.split()) != 1:
            raise ConfigError(f"decoder.lexicon: {word!r} is not one word. Put it in quotes.")
    return [word.strip() for word in lexicon]


def read_hotwords(
    hotwords: Any, weight: float, tokenizer: Spelling, spellings: list[str]
) -> dict[tuple[str, ...], float]:
    """Hotwords, as sequences of words, with their weights."""
    given: Mapping[Any, Any]
    if isinstance(hotwords, (str, Path)):
        lines = (line.partition("\t") for line in _read_lines(hotwords, "hotwords"))
        given = {phrase.strip(): own.strip() or None for phrase, _, own in lines}
    elif isinstance(hotwords, Mapping):
        given = hotwords
    elif hotwords is None or isinstance(hotwords, (list, tuple)):
        given = dict.fromkeys(hotwords or ())
    else:
        raise ConfigError(f"decoder.hotwords={hotwords}: must be a file, a list of phrases, or phrases with weights.")
    phrases, word_starts = {}, tokenizer.word_starts
    for phrase, own in given.items():
        if not isinstance(phrase, str) or not phrase.strip():
            raise ConfigError(f"decoder.hotwords: {phrase!r} is not a phrase. Put it in quotes.")
        if unknown := tokenizer.unknown(phrase):
            raise ConfigError(
                f"decoder.hotwords: '{phrase}' cannot be spelled: no label has '{unknown[0]}'. Write it as the "
                "training text was normalised."
            )
        try:
            value = float(weight if own is None else own)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(f"decoder.hotwords: '{phrase}': '{own}' is not a weight.")
        spelled = [""]
        for label in tokenizer.encode(phrase):
            if word_starts[label]:
                spelled.append("")
            spelled[-1] += spellings[label]
        phrases[tuple(word for word in spelled if word)] = value
    return phrases


def _read_lines(path: Any, key: str) -> list[str]:
    try:
        lines = [line.strip() for line in Path(path).read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"decoder.{key}: {path} cannot be read ({error}).") from None
    if not any(lines):
        raise ConfigError(f"decoder.{key}: {path} is empty.")
    return [line for line in lines if line]
