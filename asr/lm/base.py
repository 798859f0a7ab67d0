"""What language models share: special words, what a model and its trainer can do, perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"
SPECIAL = (UNKNOWN, BOS, EOS)
"""The unknown word, the start and the end of a sentence: word ids 0, 1 and 2 of every model."""
SPACE = "<space>"
"""How the label " " is written in vocabularies and ARPA files, whose words hold no white space."""
UNITS = ("words", "labels")
"""What a model predicts: words, or the labels of a tokenizer."""


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text; sentence ends are predicted too, sentence starts are not."""

    log_prob: float
    """Natural logarithm of the probability of all tokens."""
    oov_log_prob: float
    """The part of it that unknown words account for."""
    tokens: int
    """Words, unknown ones included, and one end for each sentence."""
    oov: int
    """Words that are not in the model's vocabulary."""
    sentences: int

    @property
    def including_oov(self) -> float:
        """exp of the mean -log p over all tokens; an unknown word counts with the probability of `<unk>`."""
        return _perplexity(self.log_prob, self.tokens)

    @property
    def excluding_oov(self) -> float:
        """exp of the mean -log p over the words that the model knows and the sentence ends."""
        return _perplexity(self.log_prob - self.oov_log_prob, self.tokens - self.oov)

    @property
    def oov_rate(self) -> float:
        """The share of unknown words among the words."""
        words = self.tokens - self.sentences
        return self.oov / words if words else 0.0

    def __str__(self) -> str:
        return (
            f"perplexity {self.excluding_oov:.2f} without OOV, {self.including_oov:.2f} with OOV; "
            f"OOV {100 * self.oov_rate:.2f} % [{self.oov:,} / {self.tokens - self.sentences:,}], "
            f"{self.sentences:,} sentences"
        )


def _perplexity(log_prob: float, tokens: int) -> float:
    try:
        return math.exp(-log_prob / tokens) if tokens else math.nan
    except OverflowError:
        return math.inf


class LanguageModel(Protocol):
    """What `asr.lm.load` returns and a trainer makes."""

    @property
    def unit(self) -> str:
        """`words` or `labels`."""
        ...

    @property
    def vocabulary(self) -> Sequence[str]:
        """Every word, at the index that is its id; those of `SPECIAL` come first."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """How it was made."""
        ...

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> Perplexity: ...

    def describe(self) -> str:
        """What it is, in lines for a person."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write it as a folder with an `lm.yaml` that names its kind."""
        ...


class Trainer(Protocol):
    """What a config of the group `lm` names."""

    def fit(
        self, sentences: Iterable[Sequence[str]], unit: str = "words", metadata: Mapping[str, Any] | None = None
    ) -> LanguageModel:
        """Learn a model from sentences, each a sequence of words; they may be gone through several times."""
        ...
