"""One label for each character."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property

from asr.errors import ConfigError
from asr.tokenizers.base import Tokenizer, given_labels, require_text


def is_chinese(character: str) -> bool:
    """Whether a character is a word of its own, written without spaces."""
    return "CJK" in unicodedata.name(character, "")


class Characters(Tokenizer):
    """One label for each character (Unicode code point), the space included.

    Args:
        labels: the characters, as a list or one string; `None` learns them from the training text, sorted.
        unknown: what `encode` does with a character that has no label: `error`, or `skip` it.
    """

    def __init__(self, labels: str | Sequence[str] | None = None, unknown: str = "error") -> None:
        super().__init__(unknown)
        self.given = labels is not None
        if labels is not None:
            self._set_labels(given_labels(labels, self.unit))
            for label in self._ids:
                if len(label) > 1:
                    raise ConfigError(f"tokenizer.labels: '{label}' is more than one character. Try tokenizer=words.")

    @cached_property
    def word_starts(self) -> list[bool]:  # type: ignore[override]
        """True for the space, and for Chinese characters, which are written without."""
        return [label == " " or is_chinese(label[0]) for label in self.labels]

    def fit(self, texts: Iterable[str]) -> None:
        if not self.given:
            found: set[str] = set()
            found.update(*texts)
            require_text(found)
            self._set_labels(given_labels(sorted(found), self.unit))

    def unknown(self, text: str) -> list[str]:
        known = self._ids if self.labels else {}
        return [character for character in dict.fromkeys(text) if character not in known]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.labels[i] for i in ids)

    def _encode(self, text: str) -> list[int]:
        return [self._ids[character] for character in text]

    def _without(self, text: str, unknown: list[str]) -> str:
        return " ".join("".join(character for character in text if character not in unknown).split())
