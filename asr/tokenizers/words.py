"""One label for each word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from asr.errors import ConfigError
from asr.tokenizers.base import Tokenizer, given_labels, require_text


class Words(Tokenizer):
    """One label for each word, for small vocabularies: digits, commands, yes and no.

    Args:
        labels: the words; `None` learns them from the training text, sorted.
        unknown: what `encode` does with a word that has no label: `error`, or `skip` it.
    """

    unit = "word"

    def __init__(self, labels: str | Sequence[str] | None = None, unknown: str = "error") -> None:
        super().__init__(unknown)
        self.given = labels is not None
        if labels is not None:
            self._set_labels(given_labels(labels.split() if isinstance(labels, str) else labels, self.unit))
            for label in self._ids:
                if label.split() != [label]:
                    raise ConfigError(f"tokenizer.labels: '{label}' has white space in it; each label is one word.")

    @property
    def word_starts(self) -> list[bool]:
        return [i > 0 for i in range(len(self))]

    def fit(self, texts: Iterable[str]) -> None:
        if not self.given:
            found = {word for text in texts for word in text.split()}
            require_text(found)
            self._set_labels(given_labels(sorted(found), self.unit))

    def unknown(self, text: str) -> list[str]:
        known = self._ids if self.labels else {}
        return [word for word in dict.fromkeys(text.split()) if word not in known]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.labels[i] for i in ids)

    def _encode(self, text: str) -> list[int]:
        return [self._ids[word] for word in text.split()]

    def _without(self, text: str, unknown: list[str]) -> str:
        return " ".join(word for word in text.split() if word not in unknown)
