"""Wrong utterances for reading: reference and hypothesis aligned, and the most frequent errors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest

import jiwer
from rich.cells import cell_len

from asr.evaluation.result import Result

Pair = tuple[str | None, str | None]
"""A reference word and the hypothesis word in its place; `None` for an insertion or a deletion."""

# Chinese characters and kana stand without spaces: each is a word of its own here, or one word would be the whole line
_CHARACTERS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_CHARACTERS}]|[^ {_CHARACTERS}]+")


def align(references: Sequence[str], hypotheses: Sequence[str]) -> list[list[Pair]]:
    """Align each hypothesis with its reference by jiwer, word by word (Chinese and Japanese by character).

    >>> align(["one two"], ["one too"])
    [[('one', 'one'), ('two', 'too')]]
    """
    if not references:
        return []
    spaced = [[" ".join(_WORD.findall(text)) for text in texts] for texts in (references, hypotheses)]
    output = jiwer.process_words(spaced[0], spaced[1])
    return [
        [
            pair
            for chunk in chunks
            for pair in zip_longest(
                reference[chunk.ref_start_idx : chunk.ref_end_idx], hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            )
        ]
        for reference, hypothesis, chunks in zip(output.references, output.hypotheses, output.alignments, strict=True)
    ]


def format_errors(results: Sequence[Result], top: int = 20, width: int = 110) -> str:
    """The text of `errors.txt`: the most frequent errors, then each wrong utterance, the worst first."""
    wrong = sorted(
        (result for result in results if result.words.errors),
        key=lambda result: (-result.words.errors, -result.characters.errors, result.id),
    )
    aligned = align([result.reference for result in wrong], [result.hypothesis for result in wrong])
    lines = [f"{len(wrong)} of {len(results)} utterances are wrong."]
    for title, counter in _frequent(aligned).items():
        lines += ["", f"{title}, most frequent first"]
        lines += [f"{count:7d}  {error}" for error, count in counter.most_common(top)] or ["   none"]
    for result, pairs in zip(wrong, aligned, strict=True):
        speaker = f", speaker {result.speaker}" if result.speaker is not None else ""
        lines += ["", f"{result.id}{speaker}: {result.words.format('WER')}, {result.characters.format('CER')}"]
        lines += _aligned_lines(pairs, width)
    return "\n".join(lines) + "\n"


def _frequent(aligned: Sequence[Sequence[Pair]]) -> dict[str, Counter[str]]:
    counters: dict[str, Counter[str]] = {"Substitutions": Counter(), "Deletions": Counter(), "Insertions": Counter()}
    for pairs in aligned:
        for reference, hypothesis in pairs:
            if reference is None:
                counters["Insertions"][hypothesis or ""] += 1
            elif hypothesis is None:
                counters["Deletions"][reference] += 1
            elif reference != hypothesis:
                counters["Substitutions"][f"{reference} → {hypothesis}"] += 1
    return counters


def _aligned_lines(pairs: Sequence[Pair], width: int) -> Iterator[str]:
    """Three lines, as in sclite: reference, hypothesis, and S, D or I below an error; wrapped at `width` columns."""
    rows = ["REF:", "HYP:", "    "]
    for reference, hypothesis in pairs:
        mark = "I" if reference is None else "D" if hypothesis is None else " " if reference == hypothesis else "S"
        columns = max(cell_len(reference or ""), cell_len(hypothesis or ""))  # a Chinese character is two wide
        cells = (reference or "*" * columns, hypothesis or "*" * columns, mark)
        if len(rows[2]) > 4 and len(rows[2]) + 1 + columns > width:
            yield from (row.rstrip() for row in rows)
            rows = ["REF:", "HYP:", "    "]
        rows = [f"{row} {cell}{' ' * (columns - cell_len(cell))}" for row, cell in zip(rows, cells, strict=True)]
    yield from (row.rstrip() for row in rows)
