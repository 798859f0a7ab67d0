"""Transcripts as subtitles: SubRip and WebVTT."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from asr.types import Segment, Transcript, Word

LINE = 42
"""Characters of a line, wide ones counted twice; a cue has two lines at most."""
LONGEST, SHORTEST = 7.0, 1.0
"""Seconds that a cue is shown; shorter only where the next one follows."""
READING = 20.0
"""Characters that are read in a second."""
PAUSE = 1.0
"""Seconds without speech over which no cue lasts."""


@dataclass(frozen=True)
class Cue:
    """What is shown at once."""

    start: float
    end: float
    lines: tuple[str, ...]


def to_srt(transcript: Transcript) -> str:
    """SubRip: numbered cues."""
    return "\n\n".join(
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n" + "\n".join(cue.lines)
        for number, cue in enumerate(cues(transcript), 1)
    )


def to_vtt(transcript: Transcript) -> str:
    """WebVTT (W3C)."""
    blocks = (
        f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n" + html.escape("\n".join(cue.lines), quote=False)
        for cue in cues(transcript)
    )
    return "\n\n".join(["WEBVTT", *blocks])


def cues(transcript: Transcript) -> list[Cue]:
    """What to show when: all words in their order, in cues that never overlap.

    A cue ends at a pause of a second, or where it is full: at two lines, or 7 s. Of the places where a full one could
    end, it ends where the speaker is silent longest, a full cue and a punctuation mark counting as half a second each.
    It stays for a second at least, and for as long as it takes to read, if the next one leaves the time.
    """
    tokens = [token for segment in transcript.segments for token in _tokens(segment)]
    found: list[Cue] = []
    first = 0
    while first < len(tokens):
        stop = _end_of_cue(tokens, first)
        shown = tokens[first:stop]
        start = max(shown[0].start, found[-1].end if found else 0.0)
        end = max(shown[-1].end, start + max(SHORTEST, _width(shown) / READING))
        limit = tokens[stop].start if stop < len(tokens) else float("inf")
        found.append(Cue(start, max(start, min(end, start + LONGEST, limit)), _lines(shown) or ()))
        first = stop
    return found


@dataclass(frozen=True)
class _Token:
    """What is not broken: a word, or a part of one that is longer than a line."""

    text: str
    start: float
    end: float
    space: bool
    """Whether white space is before it."""


def _tokens(segment: Segment) -> Iterator[_Token]:
    words = segment.words or _spread(segment.text.split(), segment.start, segment.end)
    at = 0
    for word in words:
        found = segment.text.find(word.text, at)
        space = found != at or not found  # none between the words of some languages
        at = max(at, found) + len(word.text)
        parts = [word] if _columns(word.text) <= LINE else _spread(_chop(word.text), word.start, word.end)
        for k, part in enumerate(parts):
            yield _Token(part.text, part.start, part.end, space and k == 0)


def _spread(texts: Sequence[str], start: float, end: float) -> Sequence[Word]:
    """Texts with times between `start` and `end`, as long as they are."""
    edges = [0, *accumulate(map(len, texts))]
    times = [start + (end - start) * edge / max(1, edges[-1]) for edge in edges]
    return [Word(text, times[k], times[k + 1], 1.0) for k, text in enumerate(texts)]


def _chop(text: str) -> list[str]:
    """Parts that fit into a line each, whatever the width of their characters."""
    return [text[k : k + LINE // 2] for k in range(0, len(text), LINE // 2)]


def _end_of_cue(tokens: Sequence[_Token], first: int) -> int:
    """The token behind the last of the cue that begins with `first`."""
    stop = first + 1
    while stop < len(tokens):
        if tokens[stop].start - tokens[stop - 1].end >= PAUSE:
            return stop
        if tokens[stop].end - tokens[first].start > LONGEST or not _lines(tokens[first : stop + 1]):
            break
        stop += 1
    else:
        return stop

    def credit(end: int) -> float:
        pause, marked = tokens[end].start - tokens[end - 1].end, tokens[end - 1].text[-1] in ".,;:?!…。，？！"
        return pause + 0.5 * _width(tokens[first:end]) / (2 * LINE) + 0.5 * marked

    return max(range(first + 1, stop + 1), key=credit)


def _lines(tokens: Sequence[_Token]) -> tuple[str, ...] | None:
    """One line, or two of about the same length; `None` if they do not hold the tokens."""
    width = _width(tokens)
    if width <= LINE:
        return (_join(tokens),)
    breaks = [(left, k) for k in range(1, len(tokens)) if (left := _width(tokens[:k])) <= LINE]
    fitting = [(abs(width - 2 * left), k) for left, k in breaks if _width(tokens[k:]) <= LINE]
    if not fitting:
        return None
    _, k = min(fitting)
    return _join(tokens[:k]), _join(tokens[k:])


def _join(tokens: Sequence[_Token]) -> str:
    return "".join(f" {token.text}" if token.space else token.text for token in tokens).strip()


def _width(tokens: Sequence[_Token]) -> int:
    return sum(_columns(token.text) + token.space for token in tokens) - tokens[0].space


def _columns(text: str) -> int:
    """The columns that a text takes, two for each wide character."""
    return len(text) if text.isascii() else sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _time(seconds: float, point: str) -> str:
    minutes, milliseconds = divmod(round(1000 * seconds), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
