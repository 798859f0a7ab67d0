"""Transcripts → text, JSON, CTM or TextGrid."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from asr.errors import ConfigError, near_matches
from asr.types import AlignedTranscript, Transcript, Utterance, Word


def to_text(transcript: Transcript) -> str:
    """The file's name, a tab, and what was said in it."""
    return f"{transcript.audio}\t{transcript.text}"


def to_json(transcript: Transcript) -> str:
    """One JSON object on a line: audio, duration, text, and words with their times and confidences."""
    row = {
        "audio_filepath": transcript.audio,
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
        "words": _rows(transcript.words),
    }
    return json.dumps(row, ensure_ascii=False)


def to_aligned_json(transcript: AlignedTranscript, utterance: Utterance) -> str:
    """One JSON object on a line: as `to_json`, with the utterance's id and offset, the labels and the score.

    Times are from the utterance's start: in the file they are `offset` seconds later.
    """
    row = {"id": utterance.id, **json.loads(to_json(transcript))}
    row |= {"offset": utterance.offset, "labels": _rows(transcript.labels), "score": round(transcript.score, 4)}
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


def to_textgrid(transcript: AlignedTranscript) -> str:
    """A TextGrid of Praat, long format: a tier of words, one of labels, each with empty intervals where there is none.

    Times are from the start of the utterance, whose end is the end of the tiers.
    """
    end = round(transcript.duration, 3)
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {end}"]
    lines += ["tiers? <exists>", "size = 2", "item []:"]
    for number, (name, words) in enumerate((("words", transcript.words), ("labels", transcript.labels)), 1):
        intervals = list(_contiguous(words, end))
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        lines += ["        xmin = 0", f"        xmax = {end}", f"        intervals: size = {len(intervals)}"]
        for k, (start, stop, text) in enumerate(intervals, 1):
            quoted = text.replace('"', '""')
            lines += [f"        intervals [{k}]:", f"            xmin = {start}", f"            xmax = {stop}"]
            lines += [f'            text = "{quoted}"']
    return "\n".join(lines)


def _contiguous(words: Sequence[Word], end: float) -> Iterator[tuple[float, float, str]]:
    """(start, end, text) of words, and of the empty intervals between, before and after them."""
    at = 0.0
    for word in words:
        if word.start > at:
            yield at, word.start, ""
        if word.end > word.start:  # Praat refuses an interval without extent
            yield word.start, word.end, word.text
            at = word.end
    if at < end or not words:
        yield at, end, ""


def _rows(words: Sequence[Word]) -> list[dict[str, Any]]:
    return [asdict(word) | {"confidence": round(word.confidence, 4)} for word in words]


WRITERS: dict[str, Callable[[Transcript], str]] = {"txt": to_text, "json": to_json}


def writer(name: str) -> Callable[[Transcript], str]:
    """The writer of that format.

    Raises:
        ConfigError: there is none.
    """
    if name not in WRITERS:
        raise ConfigError(f"format={name}: no such format. {near_matches(name, WRITERS)}")
    return WRITERS[name]
