"""Manifests: JSON Lines, one utterance a line, with NeMo's keys."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, TextIO

from asr.data.remote import beside, is_url
from asr.errors import DataError
from asr.types import MANIFEST_KEYS, Utterance


def parse_line(line: bytes | str, manifest: str | Path, number: int) -> Utterance:
    """Turn one line of a manifest into an utterance.

    A relative `audio_filepath` is taken from the manifest's folder. Where the line has no `id`,
    one is derived from the audio path and, if the line names a segment, its offset.

    Args:
        line: the JSON text.
        manifest: the file or URL that it stands in, for paths and messages.
        number: its line number, from 1.

    Raises:
        DataError: it is not a JSON object, lacks `audio_filepath`, or a value has the wrong type.
    """
    where = f"{manifest}, line {number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}). Every line must be one JSON object.") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON object is expected, found {type(row).__name__}.")
    audio = row.get("audio_filepath")
    if not isinstance(audio, str) or not audio:
        raise DataError(f"{where}: the key 'audio_filepath' is missing or empty.")
    offset = _seconds(row.get("offset"), "offset", where)
    utterance_id = row.get("id")
    if utterance_id is None:
        utterance_id = os.path.splitext(audio)[0] + (f"@{offset:.3f}" if row.get("offset") is not None else "")
    text = row.get("text")
    for key in ("text", "lang"):
        if not isinstance(row.get(key, ""), (str, NoneType)):
            raise DataError(f"{where}: '{key}' must be a string, found {row[key]!r}.")
    return Utterance(
        audio_filepath=beside(manifest, audio),
        text=text,
        duration=_seconds(row["duration"], "duration", where) if row.get("duration") is not None else None,
        offset=offset,
        id=str(utterance_id),
        speaker=None if row.get("speaker") is None else str(row["speaker"]),
        lang=row.get("lang"),
        extra={key: value for key, value in row.items() if key not in MANIFEST_KEYS},
    )


def _seconds(value: Any, key: str, where: str) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise DataError(f"{where}: '{key}' must be a number of seconds, found {value!r}.")
    return float(value)


def format_line(utterance: Utterance, folder: Path) -> str:
    """The JSON line of an utterance; its audio path is relative if it lies below `folder`."""
    return json.dumps(to_row(utterance, folder), ensure_ascii=False)


def to_row(utterance: Utterance, folder: Path) -> dict[str, Any]:
    """What `format_line` writes."""
    audio = Path(utterance.audio_filepath)
    inside = audio.is_relative_to(folder) and not is_url(utterance.audio_filepath)
    row: dict[str, Any] = {
        "audio_filepath": audio.relative_to(folder).as_posix() if inside else utterance.audio_filepath,
        "text": utterance.text,
        "duration": utterance.duration,
        "offset": utterance.offset or None,
        "id": utterance.id or None,
        "speaker": utterance.speaker,
        "lang": utterance.lang,
    }
    return {key: value for key, value in row.items() if value is not None} | dict(utterance.extra)


def read_manifest(path: str | Path) -> Iterator[Utterance]:
    """Yield the utterances of a manifest one by one; blank lines are passed over.

    Raises:
        DataError: the file is missing, or a line is broken.
    """
    path = Path(path)
    with open_manifest(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield parse_line(line, path, number)


def open_manifest(path: Path):
    """Open a manifest for reading bytes, with an error that a person understands."""
    if not path.is_file():
        raise DataError(f"{path}: no such manifest. Check the path, or make one: scripts/prepare.py.")
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None


def open_rows(path: Path, mode: str = "w") -> TextIO:
    """A file to write JSON lines to; what is no UTF-8 in a file's name is escaped as JSON escapes it."""
    return path.open(mode, encoding="utf-8", errors="backslashreplace")  # type: ignore[return-value]


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> int:
    """Write a manifest whole or not at all; return the number of utterances."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(os.path.abspath(path.parent))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    count = 0
    try:
        with open_rows(partial) as file:
            for utterance in utterances:
                count += 1
                file.write(format_line(utterance, folder) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count
