"""Transcripts → text, JSON, subtitles, tables and annotations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from asr.errors import ConfigError, near_matches
from asr.types import Transcript
from asr.writers.rows import to_aligned_json, to_ctm, to_json, to_lines, to_text, to_tsv
from asr.writers.subtitles import to_srt, to_vtt
from asr.writers.textgrid import to_textgrid

__all__ = [
    "FORMATS",
    "STREAMS",
    "check_formats",
    "format_transcript",
    "to_aligned_json",
    "to_ctm",
    "to_json",
    "to_lines",
    "to_srt",
    "to_text",
    "to_textgrid",
    "to_tsv",
    "to_vtt",
]

WRITERS: dict[str, Callable[[Transcript], str]] = {
    "txt": to_lines,
    "json": to_json,
    "srt": to_srt,
    "vtt": to_vtt,
    "tsv": to_tsv,
    "textgrid": to_textgrid,
}
FORMATS = {**{name: f".{name}" for name in (*WRITERS, "ctm")}, "textgrid": ".TextGrid"}
"""What transcripts can be written as, and how such files end."""
STREAMS = ("txt", "json", "ctm")
"""Formats of which those of several recordings may follow one another."""


def format_transcript(form: str, transcript: Transcript, recording: str, channel: int | None = None) -> str:
    """A transcript in one of the formats, without its last line's end.

    Args:
        form: one of `FORMATS`.
        transcript: of a recording.
        recording, channel: as in `to_ctm`.
    """
    return to_ctm(transcript, recording, channel) if form == "ctm" else WRITERS[form](transcript)


def check_formats(formats: Sequence[str], known: Sequence[str] = tuple(FORMATS)) -> None:
    """Raise a ConfigError if there is no such format, or none is named."""
    for name in formats:
        if name not in known:
            raise ConfigError(f"format={name}: no such format. {near_matches(name, known)}")
    if not formats:
        raise ConfigError(f"format: which one? Any of {', '.join(known)}: format=[{','.join(known[:2])}].")
