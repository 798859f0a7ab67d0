"""A manifest opened through an index: 50 million utterances take seconds and no Python objects."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from asr.data.manifest import open_manifest, parse_line
from asr.data.parallel import in_processes
from asr.data.remote import fetch, is_url
from asr.data.shards import parse_member
from asr.errors import DataError
from asr.types import Utterance

ROW = np.dtype([("start", "u8"), ("size", "u4"), ("line", "u4"), ("seconds", "f4"), ("file", "u4")])
"""Where a line starts in the file and its bytes, its number, seconds (NaN: not given), CRC-32 of its file's name."""
PART = 1 << 26
"""Bytes of a manifest that a process reads at a time."""


class ManifestIndex:
    """Random access to the utterances of a manifest.

    The first opening reads the manifest once and writes the index beside it (or, where that folder cannot be
    written, into the user's cache); later ones memory-map it. Worker processes share the pages. A manifest at a URL
    is fetched first.

    Raises:
        DataError: the manifest is missing, empty or broken, or two utterances have the same id.
    """

    def __init__(self, path: str | Path):
        self.path = str(path) if is_url(path) else Path(path)
        self.local = _fetch(str(path)) if is_url(path) else Path(path)
        if not self.local.is_file():
            open_manifest(self.local)  # raises
        self.rows = self.keep("index", ROW, lambda: _build(self.local, self.path))
        self._file: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Utterance:
        return parse_line(self._line(index), self.path, int(self.rows[index]["line"]))

    def text(self, index: int) -> str:
        """The transcript of an utterance, empty where it has none; read faster than all of it."""
        return json.loads(self._line(index)).get("text") or ""

    def _line(self, index: int) -> bytes:
        start, size, *_ = self.rows[index].item()
        if self._file is None:
            self._file = os.open(self.local, os.O_RDONLY)
        return os.pread(self._file, size, start)

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

    def keep(self, kind: str, dtype: np.dtype, build: Callable[[], np.ndarray]) -> np.ndarray:
        """What is known of every utterance, as a memory-mapped array; it is built once for each state of the manifest.

        Args:
            kind: names the file.
            dtype: of the array.
            build: makes the array, (U,).
        """
        stat = self.local.stat()
        stamp = hashlib.sha1(f"{dtype.descr} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
        name = f".{self.local.name}.{stamp}.{kind}.npy"
        user_cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "asr" / "indexes"
        elsewhere = hashlib.sha1(str(self.local.resolve()).encode()).hexdigest()[:12] + name
        files = (self.local.parent / name, user_cache / elsewhere)
        if (rows := _read_any(files, dtype)) is not None:
            return rows
        with _alone(files[0]):  # other processes wait, and find what the first one has written
            if (rows := _read_any(files, dtype)) is not None:
                return rows
            return _write(build(), files, f"{stamp}.{kind}.npy", f"*.{kind}.npy")


def _write(rows: np.ndarray, files: Sequence[Path], ending: str, others: str) -> np.ndarray:
    """Write to the first file that can be written; those of an earlier state of the manifest go."""
    for file in files:
        unfinished = file.with_name(f"{file.name}.{os.getpid()}.partial")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            for old in file.parent.glob(glob.escape(file.name.removesuffix(ending)) + others):
                old.unlink()
            with unfinished.open("wb") as opened:
                np.save(opened, rows)
            os.replace(unfinished, file)
            return np.load(file, mmap_mode="r")
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink()
    return rows  # nowhere to write: it is built anew each time


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Hold a lock beside a file, where that can be written."""
    path = file.with_name(f"{file.name}.lock")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            lock = stack.enter_context(path.open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            stack.callback(fcntl.flock, lock, fcntl.LOCK_UN)  # a process forked meanwhile has it open, too
            stack.callback(path.unlink, missing_ok=True)  # who waits for it has it open
        yield


def _read_any(files: Sequence[Path], dtype: np.dtype) -> np.ndarray | None:
    return next((rows for file in files if file.is_file() and (rows := _read(file, dtype)) is not None), None)


def _fetch(url: str) -> Path:
    try:
        return fetch(url, changing=True)
    except FileNotFoundError:
        raise DataError(f"{url}: no such manifest.") from None


def _read(file: Path, dtype: np.dtype) -> np.ndarray | None:
    """The rows of an index, `None` if it is damaged or another user's own."""
    try:
        rows = np.load(file, mmap_mode="r")
    except (OSError, EOFError, ValueError):
        return None
    return rows if rows.dtype == dtype and rows.ndim == 1 and len(rows) else None


def _build(path: Path, named: str | Path) -> np.ndarray:
    rows, ids, lines = [], [], 0
    edges = _edges(path)
    for part, (found, hashes, read) in enumerate(in_processes(partial(_scan, path, named), edges)):
        if isinstance(found, DataError):  # parts do not know the numbers of their lines
            raise found if part == 0 else _scan(path, named, edges[part], lines)[0]
        found["line"] += lines
        lines += read
        rows.append(found)
        ids.append(hashes)
    index = np.concatenate(rows)
    del rows
    if not len(index):
        raise DataError(f"{named}: the manifest is empty. Prepare the corpus again, or give another manifest.")
    _check_unique(index, np.concatenate(ids), named)
    return index


def _edges(path: Path) -> list[tuple[int, int]]:
    """Where parts of a manifest begin and end; each ends with a line."""
    size = path.stat().st_size
    edges = [0]
    with open_manifest(path) as file:
        while edges[-1] + PART < size:
            file.seek(edges[-1] + PART)
            file.readline()
            edges.append(file.tell())
    return list(itertools.pairwise([*(edge for edge in edges if edge < size), size])) or [(0, 0)]


def _scan(path: Path, named: str | Path, part: tuple[int, int], number: int = 0) -> tuple:
    """The rows of a part, the hashes of its ids, and its lines; an error in the place of the rows."""
    chunks, hashes, rows, ids = [], [], [], []
    start, stop = part
    with open_manifest(path) as file:
        file.seek(start)
        first = number
        while start < stop:
            line = file.readline()
            number += 1
            if line.strip():
                try:
                    utterance = parse_line(line, named, number)
                except DataError as error:
                    return error, None, 0
                member = parse_member(utterance.audio_filepath)
                audio = zlib.crc32(
                    (member.shard if member else utterance.audio_filepath).encode(errors="surrogatepass")
                )
                seconds = np.nan if utterance.duration is None else utterance.duration
                rows.append((start, len(line), number, seconds, audio))
                ids.append(hashlib.blake2b(utterance.id.encode(errors="surrogatepass"), digest_size=8).digest())
                if len(rows) == 1 << 16:
                    chunks.append(np.array(rows, ROW))
                    hashes.append(np.frombuffer(b"".join(ids), np.uint64))
                    rows.clear()
                    ids.clear()
            start += len(line)
    chunks.append(np.array(rows, ROW))
    hashes.append(np.frombuffer(b"".join(ids), np.uint64))
    return np.concatenate(chunks), np.concatenate(hashes), number - first


def _check_unique(index: np.ndarray, ids: np.ndarray, named: str | Path) -> None:
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    same = np.flatnonzero(ids[1:] == ids[:-1])
    if len(same):
        first, second = index["line"][order[same[0] : same[0] + 2]]
        raise DataError(
            f"{named}, lines {first} and {second}: the same id, and {len(same) - 1} more such pairs. "
            "Give every utterance an 'id' of its own."
        )
