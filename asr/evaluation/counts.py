"""Error counts: word and character errors by jiwer, summed over utterances, never averaged as ratios."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jiwer


@dataclass(frozen=True)
class ErrorCounts:
    """Errors of one or many utterances against their references; counts add up with `+` and `sum`.

    >>> sum([count_words("one two", "one"), count_words("three", "tree house")], ErrorCounts()).format("WER")
    'WER 100.00 % [3 / 3, 1 ins, 1 del, 1 sub]'
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference: int = 0
    """Words or characters of the references."""

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference word or character, 1 for 100 %; `nan` if the references are empty.

        (jiwer returns the number of insertions there, which is no rate.)
        """
        return self.errors / self.reference if self.reference else float("nan")

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference + other.reference,
        )

    def format(self, name: str) -> str:
        """The counts as they stand in every report: `WER 9.57 % [74 / 773, 5 ins, 9 del, 60 sub]`."""
        rate = f"{100 * self.rate:.2f} %" if self.reference else "undefined"
        counts = f"{self.insertions} ins, {self.deletions} del, {self.substitutions} sub"
        return f"{name} {rate} [{self.errors} / {self.reference}, {counts}]"


def count_words(reference: str | Sequence[str], hypothesis: str | Sequence[str]) -> ErrorCounts:
    """Count the word errors of an utterance, or of many summed.

    Words are what stands between spaces, as in jiwer's defaults; case and punctuation count. The words of a
    hypothesis whose reference is empty are insertions.
    """
    return sum(count_words_each(_list(reference), _list(hypothesis)), ErrorCounts())


def count_characters(reference: str | Sequence[str], hypothesis: str | Sequence[str]) -> ErrorCounts:
    """Count the character errors of an utterance, or of many summed.

    A space between words is a character like any other, as in jiwer's defaults, only those at the ends are
    stripped; a text written without spaces (Mandarin) has none to count. A character is a Unicode code point.
    """
    return sum(count_characters_each(_list(reference), _list(hypothesis)), ErrorCounts())


def count_words_each(references: Sequence[str], hypotheses: Sequence[str]) -> list[ErrorCounts]:
    """The word errors of each utterance, in one pass of jiwer."""
    return _count_each(jiwer.process_words, references, hypotheses)


def count_characters_each(references: Sequence[str], hypotheses: Sequence[str]) -> list[ErrorCounts]:
    """The character errors of each utterance, in one pass of jiwer."""
    return _count_each(jiwer.process_characters, references, hypotheses)


def _count_each(process: Callable[..., Any], references: Sequence[str], hypotheses: Sequence[str]) -> list[ErrorCounts]:
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, {len(hypotheses)} hypotheses")
    if not references:  # jiwer makes an utterance of nothing
        return []
    output = process(list(references), list(hypotheses))
    counts = []
    for reference, chunks in zip(output.references, output.alignments, strict=True):
        errors = {"substitute": 0, "delete": 0, "insert": 0, "equal": 0}
        for chunk in chunks:
            errors[chunk.type] += max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        counts.append(ErrorCounts(errors["substitute"], errors["delete"], errors["insert"], len(reference)))
    return counts


def _list(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts
