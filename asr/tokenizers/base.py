"""What all tokenizers share: labels, unknown units, saving and loading."""

from __future__ import annotations

import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from asr.errors import CheckpointError, ConfigError, DataError

BLANK = "<blank>"
"""The CTC blank: label 0 of every tokenizer."""


class Tokenizer(ABC):
    """Text ↔ label ids. `fit` or `load` comes first, unless the labels are given.

    Args:
        unknown: what `encode` does with a unit that has no label: `error`, or `skip` it.
    """

    unit = "character"

    def __init__(self, unknown: str = "error") -> None:
        if unknown not in ("error", "skip"):
            raise ConfigError(f"tokenizer.unknown: no such value {unknown!r}. There are: error, skip.")
        self.skip = unknown == "skip"
        self._labels: list[str] = []
        self._ids: dict[str, int] = {}

    @property
    def labels(self) -> list[str]:
        """Every label, at the index that is its id.

        Raises:
            ConfigError: there are none yet.
        """
        if not self._labels:
            raise ConfigError("tokenizer: it has no labels yet. Fit it on training text, or load a saved one.")
        return self._labels

    @property
    def spaced(self) -> bool:
        """Whether texts have spaces between words: labels are words, or one of them holds a space."""
        return self.unit == "word" or any(" " in label or "▁" in label for label in self.labels)

    @property
    @abstractmethod
    def word_starts(self) -> list[bool]:
        """For each label whether a new word begins with it."""

    @abstractmethod
    def fit(self, texts: Iterable[str]) -> None:
        """Learn the labels from normalised training text; where they were given, keep those.

        Raises:
            DataError: there is no text.
        """

    @abstractmethod
    def unknown(self, text: str) -> list[str]:
        """The characters or words of a text that have no label, each once, in order."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of label ids that hold no blank (repeats already merged)."""

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """The ids of a text without unknown units."""

    @abstractmethod
    def _without(self, text: str, unknown: list[str]) -> str:
        """The text less its unknown units."""

    def encode(self, text: str) -> list[int]:
        """The label ids of a normalised text.

        Raises:
            DataError: a character or word has no label, and they are not to be skipped.
        """
        if unknown := self.unknown(text):
            if not self.skip:
                raise DataError(
                    f"The {self.unit} {_spell(unknown[0])} of the text {text!r} is none of the tokenizer's labels. "
                    "Let the text normaliser map it (text=…), train the tokenizer on text that has it "
                    "(tokenizer.labels), or drop what is unknown: tokenizer.unknown=skip."
                )
            text = self._without(text, unknown)
        return self._encode(text)

    def __len__(self) -> int:
        return len(self.labels)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` into an existing folder."""
        content = {"unknown": "skip" if self.skip else "error", "labels": self.labels}
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a tokenizer that was saved in a folder; no code is executed.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        path = Path(folder) / "tokenizer.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            labels, tokenizer = content["labels"], cls(unknown=content.get("unknown", "error"))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file: the tokenizer is missing. Copy the whole folder.") from None
        except (OSError, ValueError, TypeError, KeyError, RecursionError, ConfigError) as error:
            raise CheckpointError(f"{path}: damaged ({type(error).__name__}: {error}). Fetch it again.") from None
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise CheckpointError(f"{path}: damaged: 'labels' must be a list of strings. Fetch it again.")
        if labels[:1] != [BLANK] or len(set(labels)) != len(labels):
            raise CheckpointError(f"{path}: damaged: labels must differ, the first being {BLANK}. Fetch it again.")
        tokenizer._set_labels(labels)
        return tokenizer

    def _set_labels(self, labels: list[str]) -> None:
        self._labels, self._ids = labels, {label: i for i, label in enumerate(labels) if i}
        self.__dict__.pop("word_starts", None)


def given_labels(labels: Iterable[str], unit: str) -> list[str]:
    """The labels of a config with blank before them.

    Raises:
        ConfigError: there are none, one comes twice, or is not a string.
    """
    found = list(labels)
    found = found if found[:1] == [BLANK] else [BLANK, *found]
    if len(found) == 1:
        raise ConfigError(f"tokenizer.labels: the list is empty. Give every {unit}, or null to learn them.")
    seen: set[str] = set()
    for label in found:
        if not isinstance(label, str) or not label:
            raise ConfigError(f"tokenizer.labels: {label!r} is not a {unit}. Put it in quotes.")
        if label in seen:
            raise ConfigError(f"tokenizer.labels: the {unit} {_spell(label)} is there twice.")
        seen.add(label)
    return found


def require_text(units: Iterable[str]) -> None:
    """Raise a DataError if there is nothing to learn labels from."""
    if not units:
        raise DataError("tokenizer: the training text is empty, so there are no labels to learn. Look at data.train.")


def _spell(unit: str) -> str:
    if len(unit) > 1:
        return f"'{unit}'"
    return f"'{unit}' (U+{ord(unit):04X} {unicodedata.name(unit, 'unnamed')})"
