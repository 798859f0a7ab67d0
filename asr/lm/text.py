"""Sentences of text files and manifests, line by line, for language models."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from asr.errors import ConfigError, DataError
from asr.lm.base import BOS, EOS, SPACE


class Sentences:
    """The sentences of files, each as a sequence of words; they can be gone through again and again.

    A file is plain text with one sentence a line, or a manifest (`.jsonl`) whose lines have the key `text`; either may
    be gzipped. Of a line that normalisation empties nothing is left: it is skipped and counted.

    Args:
        paths: of the files.
        normalize: text → text.
        split: normalised text → words; a DataError says that it cannot.
        skip_unknown: whether lines that `split` refuses are skipped and counted, rather than an error.

    Raises:
        DataError: a file is missing; while going through it, a line is broken, or has the word `<s>` or `</s>`.
    """

    def __init__(
        self,
        paths: Iterable[str | Path],
        normalize: Callable[[str], str],
        split: Callable[[str], Sequence[str]] = str.split,
        skip_unknown: bool = False,
    ) -> None:
        self.paths = [Path(path) for path in paths]
        self.normalize, self.split, self.skip_unknown = normalize, split, skip_unknown
        self.sentences = self.words = self.empty = self.unknown = 0
        for path in self.paths:
            if not path.is_file():
                raise DataError(f"{path}: no such file. Give plain text, one sentence a line, or a manifest (.jsonl).")

    def __iter__(self) -> Iterator[Sequence[str]]:
        self.sentences = self.words = self.empty = self.unknown = 0
        for path in self.paths:
            for number, line in _read(path):
                words = self._words(self.normalize(line), path, number)
                if words:
                    self.sentences += 1
                    self.words += len(words)
                    yield words

    def _words(self, text: str, path: Path, number: int) -> Sequence[str]:
        if not text:
            self.empty += 1
            return ()
        try:
            words = self.split(text)
        except DataError as error:
            if not self.skip_unknown:
                raise DataError(f"{path}, line {number}: {error} Or leave such lines out: unknown=skip.") from None
            self.unknown += 1
            return ()
        if BOS in words or EOS in words:
            raise DataError(
                f"{path}, line {number}: holds {BOS} or {EOS}, which stand for a sentence's start and end. "
                "Take them out: they are put there by themselves."
            )
        self.empty += not words
        return words

    def describe(self, unit: str = "words") -> str:
        """What the last pass found."""
        parts = [f"{self.sentences:,} sentences, {self.words:,} {unit}"]
        if self.empty:
            parts.append(f"{self.empty:,} lines skipped, of which normalisation leaves nothing")
        if self.unknown:
            parts.append(f"{self.unknown:,} lines skipped that have a character or word without a label")
        return "; ".join(parts)


def label_splitter(tokenizer: Any) -> Callable[[str], list[str]]:
    """A function from text to the names of its labels in a language model; " " is named `<space>`."""
    names = [label.replace(" ", SPACE) for label in tokenizer.labels]
    return lambda text: [names[label] for label in tokenizer.encode(text)]


def as_paths(value: Any, key: str) -> list[str]:
    """One path or a list of paths, as a config gives them."""
    paths = [value] if isinstance(value, str) else list(value or [])
    if not all(isinstance(path, str) and path for path in paths):
        raise ConfigError(f"{key}={value}: must be a path or a list of paths: {key}=[a.txt,b.jsonl].")
    return paths


def _read(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file and their numbers; of a manifest, their texts."""
    is_manifest = ".jsonl" in path.suffixes[-2:]
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(f"{where}: not UTF-8. Convert the file to UTF-8.") from None
            if not is_manifest:
                yield number, text
            elif text.strip():
                yield number, _manifest_text(text, where)


@contextmanager
def open_text(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, uncompressed if its content is gzip.

    Raises:
        DataError: it cannot be read, or its compression is damaged.
    """
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if is_gzip:
                with gzip.open(file) as unzipped:
                    yield unzipped  # type: ignore[misc]
            else:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: its gzip compression is damaged or cut short ({error}). Fetch it again.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None


def _manifest_text(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}). Every line must be one JSON object.") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DataError(f"{where}: must be a JSON object with the key 'text', a string.")
    return row["text"]
