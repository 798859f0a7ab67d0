"""ARPA files: n-gram models as text, the format that every toolkit reads and writes.

Doug Paul's format of 1992: a header with the number of n-grams of each order, then a line for each n-gram with its
log10 probability, its words and, below the highest order, the log10 of its back-off weight.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from asr.errors import DataError
from asr.lm.base import SPACE, SPECIAL
from asr.lm.ngram import FLOOR, Ngram
from asr.lm.text import open_text

CHUNK = 1 << 16
"""Lines that are Python objects at a time."""
PREAMBLE = 1 << 16
"""Bytes within which `\\data\\` has to come."""
UNIT_LABELS = b"# unit: labels"
UNKNOWN, CAPITALS = b"<unk>", b"<UNK>"
LARGEST = (1 << 31) - 2
"""N-grams of a model: nodes are int32."""
LN10 = np.log(10.0)  # a float64, which arrays of float32 do not round


def read_arpa(path: str | Path) -> Ngram:
    """Read an ARPA file, plain or gzipped (told by its content).

    Where `<unk>`, `<s>` or `</s>` is not among the unigrams it is added with the probability that KenLM gives it,
    log10 p = -100; probabilities below that, such as -inf, are raised to it. Suffixes of n-grams may be missing, as
    in models pruned by SRILM; contexts may not. Where `<unk>` is missing, `<UNK>` is taken for it, as KenLM does. Text
    above `\\data\\` is passed over, but for the line `# unit: labels`, which `write_arpa` puts there; that, or the word
    `<space>`, makes it a model of labels.

    Raises:
        DataError: the file is none, is cut short, or a line is broken.
    """
    path = Path(path)
    with open_text(path) as file:
        return _Reader(path, file).read()


class _Reader:
    """Reads one file from top to bottom; `number` is that of the last line read, `top` of the section's first."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self.file, self.number, self.top = path, file, 0, 0
        self.unit = "words"
        self.vocabulary: list[str] = []
        self.ids: dict[bytes, int] = {word.encode(): i for i, word in enumerate(SPECIAL)}

    def read(self) -> Ngram:
        counts = self._header()
        trie = _Trie(self._unigrams(counts[0], last=len(counts) == 1))
        for n in range(2, len(counts) + 1):
            problem = trie.add(*self._section(n, counts[n - 1], last=n == len(counts)))
            if problem:
                self._fail(f"{problem[1]} Make the file again, with a tool that keeps it whole.", self.top + problem[0])
        self._end()
        unit = "labels" if SPACE in self.vocabulary else self.unit
        return trie.model(len(counts), self.vocabulary, unit, {"source": self.path.name})

    def _fail(self, what: str, line: int | None = None) -> NoReturn:
        raise DataError(f"{self.path}, line {line or self.number}: {what}")

    def _decode(self, word: bytes) -> str:
        try:
            return word.decode()
        except UnicodeDecodeError:
            raise DataError(f"{self.path}: the word {word!r} is not UTF-8. Convert the file to UTF-8.") from None

    def _line(self) -> bytes:
        """The next line that is not blank."""
        for line in self.file:
            self.number += 1
            if line := line.strip():
                return line
        raise DataError(
            f"{self.path}: was cut short: it ends after line {self.number}, without \\end\\. Fetch it again."
        )

    def _header(self) -> list[int]:
        size = 0
        while (line := self.file.readline(PREAMBLE)).strip() != b"\\data\\":
            self.number, size = self.number + 1, size + len(line)
            if line.startswith(b"mmap lm"):
                raise DataError(f"{self.path}: a KenLM binary. Give the ARPA file that it was made from.")
            if not line or size > PREAMBLE:
                raise DataError(f"{self.path}: no ARPA file: has no line \\data\\ at its beginning. Give an ARPA file.")
            if line.strip() == UNIT_LABELS:
                self.unit = "labels"
        self.number += 1
        counts: list[int] = []
        while not (line := self._line()).startswith(b"\\"):
            found = re.fullmatch(rb"ngram\s+(\d+)\s*=\s*(\d+)", line)
            if not found or int(found[1]) != len(counts) + 1:
                self._fail(f"'ngram {len(counts) + 1}=COUNT' is expected, found {_show(line)}. Fetch the file again.")
            counts.append(int(found[2]))
        if not counts or not counts[0]:
            self._fail("the header gives no number of unigrams. Fetch the file again.")
        if sum(counts) > LARGEST:
            self._fail(f"{sum(counts):,} n-grams are more than a model can hold ({LARGEST:,}). Prune it.")
        if line != b"\\1-grams:":
            self._fail(f"'\\1-grams:' is expected, found {_show(line)}. Fetch the file again.")
        return counts

    def _unigrams(self, count: int, last: bool) -> tuple[np.ndarray, np.ndarray]:
        """(V,) log10 probabilities and back-offs of the words, by id."""
        words: list[bytes] = []
        probs, backoffs = self._values(1, count, last, words)
        capitals = UNKNOWN not in words and CAPITALS in words
        if capitals:
            words = [UNKNOWN if word == CAPITALS else word for word in words]
        given = np.empty(count, np.int64)
        for k, word in enumerate(words):
            given[k] = self.ids.setdefault(word, len(self.ids))
        repeated = np.flatnonzero(np.bincount(given, minlength=len(self.ids)) > 1)
        if len(repeated):
            row = int(np.flatnonzero(given == repeated[0])[1])
            self._fail(f"the word {_show(words[row])} comes twice. Make the file again.", self.top + row)
        self.vocabulary = [self._decode(word) for word in self.ids]
        values = np.full((2, len(self.ids)), [[FLOOR], [0.0]])
        values[:, given] = probs, backoffs
        if capitals:
            self.ids[CAPITALS] = self.ids[UNKNOWN]
        return values[0], values[1]

    def _section(self, n: int, count: int, last: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(n, count) word ids, (count,) log10 probabilities and back-offs of one order."""
        line = self._line()
        if line != b"\\%d-grams:" % n:
            self._fail(
                f"'\\{n}-grams:' is expected, found {_show(line)}: the section before it has more lines than the "
                "header says, or the file was put together wrongly. Fetch it again."
            )
        rows = np.empty((n, count), np.int32)
        return rows, *self._values(n, count, last, rows)

    def _values(self, n: int, count: int, last: bool, words: Any) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and back-offs of the next `count` lines; their words go to a list, or as ids to an array."""
        self.top = self.number + 1
        probs, backoffs = np.empty(count), np.zeros(count)
        for start in range(0, count, CHUNK):
            lines = list(islice(self.file, min(CHUNK, count - start)))
            rows = [line.split() for line in lines]
            widths = set(map(len, rows))
            if not widths <= {n + 1, n + 2} or start + len(rows) < min(start + CHUNK, count):
                self._complain(rows, n, start, count)
            if len(widths) > 1:  # without a back-off weight it is no context
                rows = [row if len(row) == n + 2 else [*row, b"0"] for row in rows]
            columns = list(zip(*rows, strict=True))
            here = slice(start, start + len(rows))
            try:
                probs[here] = np.fromiter(map(float, columns[0]), np.float64, len(rows))
                if len(columns) == n + 2:
                    backoffs[here] = np.fromiter(map(float, columns[-1]), np.float64, len(rows))
                if n == 1:
                    words.extend(columns[1])
                else:
                    for k in range(n):
                        words[k, here] = np.fromiter(map(self.ids.__getitem__, columns[k + 1]), np.int32, len(rows))
            except (ValueError, KeyError):
                self._complain(rows, n, start, count)
            if not ((probs[here] <= 0) & (backoffs[here] < np.inf)).all():
                self._complain(rows, n, start, count)
            self.number += len(rows)
        return np.maximum(probs, FLOOR), np.zeros(count) if last else np.maximum(backoffs, FLOOR)

    def _complain(self, rows: list[list[bytes]], n: int, start: int, count: int) -> NoReturn:
        """Name the first broken line of a chunk and what is wrong with it."""
        known = self.ids if n > 1 else None
        for k, row in enumerate(rows, 1):
            line = self.number + k
            if not row or row[0].startswith(b"\\"):
                self._fail(
                    f"the section of {n}-grams ends after {start + k - 1:,} lines, but the header says {count:,}. "
                    "Fetch the file again.",
                    line,
                )
            if len(row) not in (n + 1, n + 2):
                found = _show(b" ".join(row))
                self._fail(f"a number, {n} words and at most one more number are expected, found {found}.", line)
            for value in (row[0], *row[n + 1 :]):
                if not _is_number(value):
                    self._fail(f"{_show(value)} is not a number. Fetch the file again.", line)
            if float(row[0]) > 0:
                self._fail(
                    f"the log10 probability {row[0].decode()} is above 0. Make the file again, or write 0.", line
                )
            for word in row[1 : n + 1]:
                if known is not None and word not in known:
                    self._fail(f"the word {_show(word)} is none of the unigrams. Make the file again.", line)
        self.number += len(rows)
        self._line()  # raises: the file ends here
        raise AssertionError("a broken line was not found")

    def _end(self) -> None:
        if (line := self._line()) != b"\\end\\":
            self._fail(
                f"'\\end\\' is expected, found {_show(line)}: the last section has more lines than the header says. "
                "Fetch the file again."
            )
        while self.file.read(CHUNK):  # gzip checks its sum at the end
            pass


def _is_number(value: bytes) -> bool:
    try:
        return float(value) < math.inf  # not NaN
    except ValueError:
        return False


def _show(text: bytes) -> str:
    shown = "".join(c if c.isprintable() else " " for c in text.decode(errors="replace"))
    return f"'{shown if len(shown) <= 60 else shown[:57] + '…'}'"


class _Trie:
    """The arrays of an `Ngram`, built order by order.

    A node's key is (node of its context) · V + (its last word). Nodes are in the order of their keys, those of one
    order after those of the order before, so one search finds the child of any node.
    """

    def __init__(self, unigrams: tuple[np.ndarray, np.ndarray]) -> None:
        self.size = len(unigrams[0])
        self.starts = [0, 1]  # the first node of each order
        self.keys = np.arange(self.size, dtype=np.int64)
        self.log_probs, self.backoffs = [np.zeros(1), unigrams[0]], [np.zeros(1), unigrams[1]]
        self.suffixes = np.zeros(1 + self.size, np.int32)

    def child(self, nodes: np.ndarray, words: np.ndarray) -> np.ndarray:
        """The node of each context followed by each word, -1 where there is none."""
        keys = nodes * np.int64(self.size) + words
        found = np.searchsorted(self.keys, keys)
        found[found == len(self.keys)] = 0
        return np.where(self.keys[found] == keys, found + 1, -1)

    def add(self, rows: np.ndarray, probs: np.ndarray, backoffs: np.ndarray) -> tuple[int, str] | None:
        """Take in the next order, (n, rows) word ids and log10 values; return the first bad row and what is wrong."""
        n = len(rows)
        contexts = rows[0] + 1
        for words in rows[1:-1]:
            contexts = self.child(contexts, words)
            if len(missing := np.flatnonzero(contexts < 0)):
                return int(missing[0]), f"the first {n - 1} words of this {n}-gram are no {n - 1}-gram of the file."
        keys = contexts * np.int64(self.size) + rows[-1]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        if len(twice := np.flatnonzero(keys[1:] == keys[:-1])):
            return int(order[twice + 1].min()), f"this {n}-gram comes twice."
        suffixes = self.suffixes[contexts[order]]
        words, found = rows[-1][order], np.empty(len(order), np.int32)
        open_rows = np.arange(len(order))
        while len(open_rows):  # a shorter suffix each time; the last word alone is always there
            child = self.child(suffixes[open_rows], words[open_rows])
            found[open_rows] = child
            open_rows = open_rows[child < 0]
            suffixes[open_rows] = self.suffixes[suffixes[open_rows]]
        self.starts.append(len(self.suffixes))
        self.keys = np.concatenate([self.keys, keys])
        self.suffixes = np.concatenate([self.suffixes, found])
        self.log_probs.append(probs[order])
        self.backoffs.append(backoffs[order])
        return None

    def model(self, order: int, vocabulary: list[str], unit: str, metadata: dict[str, Any]) -> Ngram:
        contexts = self.starts[order]  # nodes of the orders below
        return Ngram(
            words=np.append(-1, self.keys % self.size),
            log_probs=LN10 * np.concatenate(self.log_probs),
            backoffs=LN10 * np.concatenate(self.backoffs[:order]),
            first=1 + np.searchsorted(self.keys, np.arange(contexts + 1, dtype=np.int64) * self.size),
            suffixes=self.suffixes,
            order=order,
            vocabulary=vocabulary,
            unit=unit,
            metadata=metadata,
        )


def write_arpa(model: Ngram, path: str | Path) -> None:
    """Write an ARPA file, whole or not at all; gzipped if its name ends in `.gz`. Reading it gives the same arrays.

    Raises:
        DataError: it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(partial, "wb", 6) if path.suffix == ".gz" else partial.open("wb") as file:
            for text in _arpa_text(model):
                file.write(text.encode())
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}). Choose another place.") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _arpa_text(model: Ngram) -> Iterator[str]:
    if model.unit == "labels":
        yield f"{UNIT_LABELS.decode()}\n"  # KenLM, too, passes over lines that begin so
    yield "\\data\\\n" + "".join(f"ngram {n}={count}\n" for n, count in enumerate(model.counts, 1))
    parents = np.repeat(np.arange(len(model.backoffs), dtype=np.int32), np.diff(model.first))  # of nodes 1, 2, …
    for n, (start, stop) in enumerate(zip(model.ends, model.ends[1:], strict=False), 1):
        yield f"\n\\{n}-grams:\n"
        for begin in range(start, stop, CHUNK):
            nodes = np.arange(begin, min(begin + CHUNK, stop))
            # nine digits tell any two float32 apart
            columns = [[f"{value:.9g}\t" for value in (model.log_probs[nodes] / LN10).tolist()]]
            ancestors: np.ndarray = nodes
            words = []
            for _ in range(n):
                words.append([model.vocabulary[word] for word in model.words[ancestors].tolist()])
                ancestors = parents[ancestors - 1]
            columns.append([" ".join(row) for row in zip(*reversed(words), strict=True)])
            if n < model.order:
                columns.append([f"\t{value:.9g}" for value in (model.backoffs[nodes] / LN10).tolist()])
            yield "".join(f"{''.join(row)}\n" for row in zip(*columns, strict=True))
    yield "\n\\end\\\n"
