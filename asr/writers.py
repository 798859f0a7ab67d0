"""Transcripts → text or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

from asr.errors import ConfigError, near_matches
from asr.types import Transcript


def to_text(transcript: Transcript) -> str:
    """The file's name, a tab, and what was said in it."""
    return f"{transcript.audio}\t{transcript.text}"


def to_json(transcript: Transcript) -> str:
    """One JSON object on a line: audio, duration, text, and words with their times and confidences."""
    row = {
        "audio_filepath": transcript.audio,
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
        "words": [asdict(word) | {"confidence": round(word.confidence, 4)} for word in transcript.words],
    }
    return json.dumps(row, ensure_ascii=False)


WRITERS: dict[str, Callable[[Transcript], str]] = {"txt": to_text, "json": to_json}


def writer(name: str) -> Callable[[Transcript], str]:
    """The writer of that format.

    Raises:
        ConfigError: there is none.
    """
    if name not in WRITERS:
        raise ConfigError(f"format={name}: no such format. {near_matches(name, WRITERS)}")
    return WRITERS[name]
