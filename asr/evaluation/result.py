"""The result of an evaluation, utterance by utterance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asr.errors import DataError
from asr.evaluation.counts import ErrorCounts, count_characters_each, count_words_each
from asr.types import Utterance


@dataclass(frozen=True)
class Result:
    """What was said and what was recognized in one utterance, with its error counts."""

    id: str
    reference: str
    """The text that was scored against: after text normalisation."""
    hypothesis: str
    words: ErrorCounts
    characters: ErrorCounts
    speaker: str | None = None
    duration: float = 0.0
    """Seconds of audio."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Other keys of the manifest's line (age, gender, lang …), to group by."""

    def get(self, key: str) -> Any:
        """The speaker, or the field of that name; `None` where the utterance has no such key."""
        return self.speaker if key == "speaker" else self.fields.get(key)


def make_results(utterances: Sequence[Utterance], hypotheses: Sequence[str]) -> list[Result]:
    """Score the hypotheses against the texts of their utterances.

    Normalise the texts before: `replace(utterance, text=normalise(utterance.text))`.

    Raises:
        DataError: an utterance has no text.
    """
    for utterance in utterances:
        if utterance.text is None:
            raise DataError(
                f"{utterance.id}: the utterance has no 'text' to score against. "
                "Transcribe such audio with scripts/transcribe.py, or add the text to the manifest."
            )
    references = [utterance.text or "" for utterance in utterances]
    words, characters = count_words_each(references, hypotheses), count_characters_each(references, hypotheses)
    return [
        Result(
            id=utterance.id,
            reference=utterance.text or "",
            hypothesis=hypothesis,
            words=word_counts,
            characters=character_counts,
            speaker=utterance.speaker or None,
            duration=utterance.duration or 0.0,
            fields=dict(utterance.extra) | ({"lang": utterance.lang} if utterance.lang else {}),
        )
        for utterance, hypothesis, word_counts, character_counts in zip(
            utterances, hypotheses, words, characters, strict=True
        )
    ]
