"""A manifest opened through an index: 50 million utterances take seconds and no Python objects."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asr.data.manifest import open_manifest, parse_line
from asr.errors import DataError
from asr.types import Utterance

ROW = np.dtype([("start", "u8"), ("size", "u4"), ("line", "u4"), ("seconds", "f4"), ("characters", "u4"), ("id", "u8")])
"""Where a line starts in the file and its bytes, its number, seconds (NaN: not given), characters, hash of its id."""


class ManifestIndex:
    """Random access to the utterances of a manifest.

    The first opening reads the manifest once and writes the index beside it (or, where that folder cannot be
    written, into the user's cache); later ones memory-map it. Worker processes share the pages.

    Raises:
        DataError: the manifest is missing, empty or broken, or two utterances have the same id.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.rows = _load_or_build(self.path)
        self._file: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Utterance:
        row = self.rows[index]
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
        line = os.pread(self._file, int(row["size"]), int(row["start"]))
        return parse_line(line, self.path, int(row["line"]))

    def __iter__(self) -> Iterator[Utterance]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict:
        return {"path": self.path}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)  # type: ignore[arg-type]

    @property
    def seconds(self) -> np.ndarray:
        """(U,) float32 durations; NaN where the manifest gives none."""
        return self.rows["seconds"]


def _load_or_build(path: Path) -> np.ndarray:
    if not path.is_file():
        open_manifest(path)  # raises
    stat = path.stat()
    stamp = hashlib.sha1(f"{ROW.descr} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    name = f".{path.name}.{stamp}.index.npy"
    user_cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "asr" / "indexes"
    elsewhere = hashlib.sha1(str(path.resolve()).encode()).hexdigest()[:12] + name
    files = (path.parent / name, user_cache / elsewhere)
    for file in files:
        if file.is_file() and (rows := _read(file)) is not None:
            return rows
    rows = _build(path)
    for file in files:
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            for old in file.parent.glob(glob.escape(file.name.removesuffix(f"{stamp}.index.npy")) + "*.index.npy"):
                old.unlink()
            with partial.open("wb") as opened:
                np.save(opened, rows)
            os.replace(partial, file)
            return np.load(file, mmap_mode="r")
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
    return rows  # nowhere to write: it is built anew each time


def _read(file: Path) -> np.ndarray | None:
    """The rows of an index, `None` if it is damaged or another user's own."""
    try:
        rows = np.load(file, mmap_mode="r")
    except (OSError, EOFError, ValueError):
        return None
    return rows if rows.dtype == ROW and rows.ndim == 1 and len(rows) else None


def _build(path: Path) -> np.ndarray:
    chunks, rows, start = [], [], 0
    with open_manifest(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                utterance = parse_line(line, path, number)
                identity = int.from_bytes(hashlib.blake2b(utterance.id.encode(), digest_size=8).digest(), "little")
                seconds = np.nan if utterance.duration is None else utterance.duration
                rows.append((start, len(line), number, seconds, len(utterance.text or ""), identity))
                if len(rows) == 1 << 16:
                    chunks.append(np.array(rows, ROW))
                    rows.clear()
            start += len(line)
    chunks.append(np.array(rows, ROW))
    index = np.concatenate(chunks)
    if not len(index):
        raise DataError(f"{path}: the manifest is empty. Prepare the corpus again, or give another manifest.")
    _check_unique(index, path)
    return index


def _check_unique(index: np.ndarray, path: Path) -> None:
    order = np.argsort(index["id"], kind="stable")
    same = np.flatnonzero(index["id"][order][1:] == index["id"][order][:-1])
    if len(same):
        first, second = index["line"][order[same[0] : same[0] + 2]]
        raise DataError(
            f"{path}, lines {first} and {second}: the same id, and {len(same) - 1} more such pairs. "
            "Give every utterance an 'id' of its own."
        )
