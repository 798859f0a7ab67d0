"""Pieces of recordings, recognized in any order → one transcript for each recording."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from asr.errors import AsrError
from asr.segmentation import WINDOW, Piece
from asr.tokenizers.characters import is_chinese
from asr.types import Hypothesis, Segment, Transcript

Result = TypeVar("Result")


class Recording:
    """What is known of a recording while it is read and recognized.

    Args:
        name: its path.
        rate: samples per second.
        frame_seconds: from one emission frame to the next.
        max_segment: seconds; what was run in windows is decoded in segments of at most so much.
        tokenizer: knows which labels begin a word; needed for what was run in windows.
    """

    def __init__(self, name: str, rate: int, frame_seconds: float, max_segment: float = WINDOW, tokenizer: Any = None):
        self.name, self.rate, self.frame_seconds = name, rate, frame_seconds
        self.samples = 0
        self.pieces = self.recognized = 0
        """Pieces that were cut, and those of them that are recognized."""
        self.error: AsrError | None = None
        self.ended = False
        """Whether no piece follows."""
        self._done = 0.0
        self._max_frames, self._tokenizer = max(1, int(max_segment / frame_seconds)), tokenizer
        self._joins: dict[int, Join] = {}
        self._segments: list[Segment] = []
        self._hypotheses: tuple[Hypothesis, ...] = ()

    def advance(self, piece: Piece) -> float:
        """Note that a piece is recognized; the seconds of audio that are done with it."""
        kept = len(piece) / self.rate - piece.skip * self.frame_seconds
        seconds = kept if piece.keep is None else piece.keep * self.frame_seconds
        self.recognized += 1
        self._done += seconds
        return seconds

    @property
    def remaining(self) -> float:
        """Seconds that were read and are in no piece that is recognized."""
        return max(0.0, self.seconds - self._done)

    @property
    def seconds(self) -> float:
        """As far as it was read."""
        return self.samples / self.rate

    @property
    def complete(self) -> bool:
        return self.ended and self.recognized == self.pieces

    def count(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass the blocks (N,) on, and count their samples."""
        for block in blocks:
            self.samples += len(block)
            yield block

    def join(self, piece: Piece, log_probs: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        """The emissions (T, V) of a piece → what can be decoded: where it starts, in seconds, and emissions (T', V)."""
        new = Join(self._max_frames, self.frame_seconds, self._tokenizer.word_starts)
        join = self._joins.setdefault(piece.stretch, new)
        yield from join.add(piece, piece.kept(log_probs))
        if join.complete:
            del self._joins[piece.stretch]

    def add(self, start: float, seconds: float, found: list[Hypothesis]) -> None:
        """Take the n-best list of what starts at `start` and lasts for `seconds`."""
        self._hypotheses = tuple(_move(hypothesis, start) for hypothesis in found)
        best = self._hypotheses[0]
        if best.text:
            first, last = round(start, 3), round(start + seconds, 3)
            if best.words:
                first, last = best.words[0].start, best.words[-1].end
            self._segments.append(Segment(best.text, first, last, best.words, self._hypotheses))

    def transcript(self) -> Transcript:
        segments = sorted(self._segments, key=lambda segment: segment.start)
        return Transcript(
            self.name,
            joined([segment.text for segment in segments], self._tokenizer),
            tuple(word for segment in segments for word in segment.words),
            self.seconds,
            self._hypotheses if self.pieces == 1 else (),
            segments=tuple(segments),
        )


class Join:
    """The emissions of a stretch that was run in windows, put together in their order.

    As soon as they are longer than a segment may be, they are cut at the longest pause between two words; then no
    decoder and no vocabulary makes hours of them too much for the memory.
    """

    def __init__(self, max_frames: int, frame_seconds: float, word_starts: Sequence[bool]):
        self.max_frames, self.frame_seconds, self.word_starts = max_frames, frame_seconds, word_starts
        self._waiting: dict[int, tuple[Piece, np.ndarray]] = {}
        self._following = 0
        self._start = 0.0
        self._parts: list[np.ndarray] = []
        self.complete = False

    def add(self, piece: Piece, log_probs: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        """Take a window's emissions (T, V), in any order; see `Recording.join`."""
        self._waiting[piece.window] = piece, log_probs
        while self._following in self._waiting:
            piece, log_probs = self._waiting.pop(self._following)
            self._start = self._start if self._following else piece.start
            self._following += 1
            joined = np.concatenate([*self._parts, log_probs])
            while len(joined) > self.max_frames:
                cut = longest_pause(joined[: self.max_frames], self.word_starts)
                yield self._start, joined[:cut]
                joined, self._start = joined[cut:], self._start + cut * self.frame_seconds
            self._parts = [joined]
            if piece.keep is None:
                self.complete = True
                yield self._start, joined


def longest_pause(log_probs: np.ndarray, word_starts: Sequence[bool]) -> int:
    """(T, V) → the frame in the middle of the longest run of blanks ahead of a word, the first third left out.

    Args:
        word_starts: for each label whether a word begins with it. Where none does, any run of blanks will do; where
            there is none, T is returned.
    """
    path = log_probs.argmax(1)
    starts = np.flatnonzero(np.diff(path, prepend=-1))
    stops = np.append(starts[1:], len(path))
    labels, late = path[starts], starts > len(path) // 3
    before = np.where(np.append(True, labels[:-1] == 0), np.append(0, starts[:-1]), starts)  # where blanks begin
    words = np.flatnonzero(np.asarray(word_starts)[labels] & (labels != 0) & late)
    if len(words):
        k = words[np.argmax(starts[words] - before[words])]
        return int(before[k] + starts[k]) // 2
    blanks = np.flatnonzero((labels == 0) & late)
    k = blanks[np.argmax(stops[blanks] - starts[blanks])] if len(blanks) else -1
    return int(starts[k] + stops[k]) // 2 if len(blanks) else len(path)


def joined(texts: Sequence[str], tokenizer: Any = None) -> str:
    """Words or texts that follow each other, with a space between two, but for Chinese characters.

    Args:
        texts: none of them empty.
        tokenizer: where its labels are words, Chinese ones are parted, too; where it has no space, nothing is.

    >>> joined(["yes", "no"]), joined(["今天", "好"])
    ('yes no', '今天好')
    """
    if not getattr(tokenizer, "spaced", True):
        return "".join(texts)
    unit = getattr(tokenizer, "unit", "character")
    found = ""
    for text in texts:
        together = not found or (unit != "word" and is_chinese(found[-1]) and is_chinese(text[0]))
        found += text if together else f" {text}"
    return found


def _move(hypothesis: Hypothesis, seconds: float) -> Hypothesis:
    if not seconds:
        return hypothesis
    return replace(hypothesis, words=tuple(word.later(seconds) for word in hypothesis.words))


def in_order(results: Iterable[tuple[int, Result]]) -> Iterator[tuple[int, Result]]:
    """The same results, sorted by their numbers from 0 on, as soon as all before them have come."""
    waiting: dict[int, Result] = {}
    following = 0
    for index, result in results:
        waiting[index] = result
        while following in waiting:
            yield following, waiting.pop(following)
            following += 1
