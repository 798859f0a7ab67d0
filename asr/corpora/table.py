"""A table of one's own recordings: CSV or TSV with a header, or JSON Lines."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from asr.corpora.base import Corpus, Splits, extra_fields, require_path
from asr.corpora.check import MISSING_AUDIO, Dropped
from asr.errors import ConfigError, DataError, near_matches
from asr.types import Utterance

Row = tuple[int, dict[str, Any]]
"""Line number and cells by column."""
ROLES = ("audio", "text", "speaker", "id", "offset", "duration", "lang", "split")


@dataclass(kw_only=True)
class Table(Corpus):
    """A row an utterance. `columns` says which column is what; all other columns are kept under their names.

    A `.tsv` file is separated by tabs and quotes nothing; of any other, the header shows the separator (`,` `;` or
    tab), and cells may be quoted. Lines that start with `{` are JSON. Offsets and durations are in seconds.
    """

    path: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    """Column names for audio and text (by default of these very names), speaker and lang (likewise, if there are
    such), and id, offset, duration and split. Every value of the split column becomes a manifest."""
    split: str = "train"
    """What to call the manifest of a table without a split column."""
    audio_root: str | None = None
    """What relative audio paths are relative to; the table's folder if not given."""
    lang: str | None = None
    """Language of the rows that name none."""

    def utterances(self, out: Path) -> Splits:
        path = require_path(self.path, "corpus.path", "a CSV, TSV or JSON Lines file with a row for each utterance")
        for role in self.columns:
            if role not in ROLES:
                raise ConfigError(f"corpus.columns: there is no '{role}'. {near_matches(role, ROLES)}")
        columns = self._resolve(path)
        if "split" not in columns:
            return {self.split: self._read(path, columns)}
        splits: dict[str, None] = {}
        for number, row in read_rows(path):
            splits[_split_of(row, columns, f"{path}, line {number}")] = None
        return {split: self._read(path, columns, split) for split in splits}

    def _resolve(self, path: Path) -> dict[str, str]:
        """Columns by role, each of them checked to be there."""
        header = _read_header(path)
        columns = {"audio": "audio", "text": "text"}
        columns |= {role: role for role in ("speaker", "lang") if role in header}
        columns |= {role: str(name) for role, name in self.columns.items() if name is not None}
        for role, name in columns.items():
            if name not in header:
                raise DataError(
                    f"{path}: has no column '{name}' (corpus.columns.{role}=…). {near_matches(name, header)}"
                )
        return columns

    def _read(self, path: Path, columns: Mapping[str, str], split: str | None = None) -> Iterator[Utterance | Dropped]:
        audio_root = Path(self.audio_root or path.parent)
        for number, row in read_rows(path):
            where = f"{path}, line {number}"
            if split is not None and _split_of(row, columns, where) != split:
                continue
            cells = {role: row.get(name) for role, name in columns.items()}
            audio = cells["audio"]
            if not isinstance(audio, str) or not audio.strip():
                yield Dropped(str(cells.get("id") or ""), "", MISSING_AUDIO, f"{where}: no '{columns['audio']}'")
                continue
            offset = _seconds(cells.get("offset"), "offset", where)
            name = os.path.splitext(audio)[0] + (f"@{offset:.3f}" if offset is not None else "")
            yield Utterance(
                audio_filepath=str(audio_root / audio.strip()),
                text=None if cells["text"] is None else str(cells["text"]).strip(),
                duration=_seconds(cells.get("duration"), "duration", where),
                offset=offset or 0.0,
                id=str(cells.get("id") or name),
                speaker=_text(cells.get("speaker")),
                lang=_text(cells.get("lang")) or self.lang,
                extra=extra_fields({k: v for k, v in row.items() if k not in columns.values()}, "table"),
            )


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a table.

    Raises:
        DataError: a row has not as many cells as the header, or is no JSON object; not UTF-8.
    """
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            if first.lstrip().startswith("{"):
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield number, _parse_json(line, f"{path}, line {number}")
                return
            reader = _csv_reader(file, path, first)
            header: list[str] = next(reader, [])
            number = reader.line_num
            if not any(header):
                raise DataError(f"{path}: has no header. The first line must name the columns.")
            if nameless := sum(not name.strip() for name in header):
                missing = f"{nameless} of {len(header)} columns have no name in the first line"
                raise DataError(f"{path}: {missing}. Name them, or remove them.")
            if twice := {name for name in header if header.count(name) > 1}:
                raise DataError(f"{path}: the header names {', '.join(sorted(twice))} more than once.")
            for cells in reader:
                number = reader.line_num
                if cells and len(cells) != len(header):
                    raise DataError(
                        f"{path}, line {number}: {len(cells)} cells, but the header has {len(header)}. "
                        "A separator in a text must be quoted in CSV, and cannot stand in TSV."
                    )
                if cells:
                    yield number, dict(zip(header, cells, strict=True))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, near line {number + 1}: not UTF-8 ({error.reason}). Convert the file.") from None
    except csv.Error as error:
        raise DataError(f"{path}, near line {number + 1}: {error}. Is a quotation mark left open?") from None


def _csv_reader(file: Any, path: Path, header: str) -> Any:
    if path.suffix.lower() in (".tsv", ".tab"):
        return csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(file, delimiter=max(",;\t", key=header.count), strict=True)


def _parse_json(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}). Every line must be one JSON object.") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON object is expected, found {type(row).__name__}.")
    return row


def _read_header(path: Path) -> list[str]:
    """The columns of the first rows (JSON may leave some out); a table without rows is an error."""
    header = dict.fromkeys(name for _, row in islice(read_rows(path), 1000) for name in row)
    if not header:
        raise DataError(f"{path}: holds no rows.")
    return list(header)


def _split_of(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> str:
    split = _text(row.get(columns["split"]))
    if not split:
        raise DataError(f"{where}: the split column '{columns['split']}' is empty. Fill it, or take the row out.")
    return split


def _text(cell: Any) -> str | None:
    return None if cell is None or not str(cell).strip() else str(cell).strip()


def _seconds(cell: Any, name: str, where: str) -> float | None:
    if (text := _text(cell)) is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise DataError(f"{where}: '{name}' must be a number of seconds, found {text!r}.")
    return seconds
