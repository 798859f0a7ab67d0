"""Transcripts as lines: text, JSON Lines, CTM, tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from asr.types import AlignedTranscript, Hypothesis, Segment, Transcript, Utterance, Word


def to_text(transcript: Transcript) -> str:
    """The file's name, a tab, and what was said in it."""
    return f"{transcript.audio}\t{transcript.text}"


def to_lines(transcript: Transcript) -> str:
    """What was said, each segment on a line."""
    return "\n".join(segment.text for segment in transcript.segments)


def to_json(transcript: Transcript) -> str:
    """One JSON object on a line: audio, duration, text, segments, and words with their times and confidences.

    Where the decoder gave several hypotheses, each segment has them with their scores, best first.
    """
    row = _row(transcript) | {"segments": [_segment(segment) for segment in transcript.segments]}
    return json.dumps(row, ensure_ascii=False)


def to_aligned_json(transcript: AlignedTranscript, utterance: Utterance) -> str:
    """One JSON object on a line: the utterance's id and offset, duration, text, words, labels and score.

    Times are from the utterance's start: in the file they are `offset` seconds later.
    """
    row = {"id": utterance.id, **_row(transcript)}
    row |= {"offset": utterance.offset, "labels": _places(transcript.labels), "score": round(transcript.score, 4)}
    return json.dumps(row, ensure_ascii=False)


def to_ctm(transcript: Transcript, recording: str, channel: int | None = None, offset: float = 0.0) -> str:
    """A line for each word, as NIST's sclite reads it: recording, channel, start, duration, word, confidence.

    Args:
        transcript: of the recording, or of a segment of it.
        recording: its name, without white space.
        channel: of the audio file, from 0; the CTM counts from 1.
        offset: seconds from the recording's start to the segment's.
    """
    return "\n".join(
        f"{recording} {(channel or 0) + 1} {offset + word.start:.3f} {word.end - word.start:.3f} "
        f"{word.text} {word.confidence:.4f}"
        for word in transcript.words
    )


def to_tsv(transcript: Transcript) -> str:
    """A table of the segments, as whisper writes it: start and end in milliseconds, text."""
    rows = (f"{1000 * s.start:.0f}\t{1000 * s.end:.0f}\t{s.text}" for s in transcript.segments)
    return "\n".join(["start\tend\ttext", *rows])


def _row(transcript: Transcript) -> dict[str, Any]:
    return {
        "audio_filepath": transcript.audio,
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
        "words": _places(transcript.words),
    }


def _places(words: Sequence[Word]) -> list[dict[str, Any]]:
    return [asdict(word) | {"confidence": round(word.confidence, 4)} for word in words]


def _segment(segment: Segment) -> dict[str, Any]:
    row: dict[str, Any] = {"text": segment.text, "start": segment.start, "end": segment.end}
    if len(segment.hypotheses) > 1:
        row["nbest"] = [_hypothesis(hypothesis) for hypothesis in segment.hypotheses]
    return row


def _hypothesis(hypothesis: Hypothesis) -> dict[str, Any]:
    scores = {key: getattr(hypothesis, key) for key in ("score", "acoustic_score", "lm_score")}
    return {"text": hypothesis.text} | {key: round(score, 4) for key, score in scores.items() if score is not None}
