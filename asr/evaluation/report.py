"""The report of an evaluation: error rates with their intervals, groups, and the difference to another result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, isnan, nan
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asr.errors import ConfigError, DataError, near_matches
from asr.evaluation.bootstrap import Interval, PairedDifference, bootstrap_interval, paired_difference
from asr.evaluation.counts import ErrorCounts
from asr.evaluation.result import Result

UNITS: dict[str, Literal["words", "characters"]] = {"WER": "words", "CER": "characters"}
NO_VALUE = "(none)"


@dataclass(frozen=True)
class Scores:
    """The summed scores of some utterances."""

    utterances: int
    wrong: int
    """Utterances with at least one word error."""
    words: ErrorCounts
    characters: ErrorCounts
    duration: float
    """Seconds of audio."""

    @property
    def utterance_error_rate(self) -> float:
        return self.wrong / self.utterances


@dataclass(frozen=True)
class Evaluation:
    """The whole report; `print_evaluation` shows it, `as_dict` goes to `summary.json`."""

    total: Scores
    intervals: Mapping[str, Interval]
    """Of WER and CER, by that name."""
    groups: Mapping[str, Mapping[str, Scores]]
    """For each key of `group_by`, the scores of each of its values, sorted."""
    seconds: float | None = None
    """What recognizing took, reading the files included."""
    differences: Mapping[str, PairedDifference] | None = None
    """This result minus the other, of WER and CER, by that name."""
    compare_name: str = ""

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of computing for a second of audio; `None` where either is unknown."""
        return None if self.seconds is None or not self.total.duration else self.seconds / self.total.duration

    def lines(self) -> list[str]:
        """The report without its tables, a line each."""
        total = self.total
        lines = [
            f"{getattr(total, unit).format(name)}, {self.intervals[name].format()}" for name, unit in UNITS.items()
        ]
        lines.append(f"UER {100 * total.utterance_error_rate:.1f} % [{total.wrong} / {total.utterances}]")
        if self.real_time_factor is not None:
            lines.append(f"RTF {self.real_time_factor:.4f} [{self.seconds:.1f} s for {total.duration:.1f} s of audio]")
        for name, difference in (self.differences or {}).items():
            lines.append(difference.format(name, self.compare_name))
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON; `None` for a rate or bound that is undefined."""
        summary: dict[str, Any] = _scores_dict(self.total)
        for name, interval in self.intervals.items():
            summary[name.lower()]["interval"] = _plain(asdict(interval))
        summary |= {"seconds": self.seconds, "rtf": self.real_time_factor}
        if self.groups:
            summary["groups"] = {
                key: {value: _scores_dict(scores) for value, scores in groups.items()}
                for key, groups in self.groups.items()
            }
        if self.differences:
            summary["compare"] = {"with": self.compare_name} | {
                name.lower(): _plain(asdict(difference) | {"difference": difference.value})
                for name, difference in self.differences.items()
            }
        return summary


def summarize(
    results: Sequence[Result],
    group_by: Sequence[str] = (),
    seconds: float | None = None,
    compare: Sequence[Result] | None = None,
    compare_name: str = "the other",
) -> Evaluation:
    """Sum up an evaluation.

    Args:
        results: every utterance once.
        group_by: `speaker` or other keys of the manifest, or `age<18`, for the two sides; each makes a table.
        seconds: what recognizing took, for the real-time factor.
        compare: results of another recognizer on the same utterances.
        compare_name: what to call it in the report.

    Raises:
        DataError: there are no results, or `compare` is of other utterances.
        ConfigError: no utterance has a key of `group_by`.
    """
    if not results:
        raise DataError("There are no utterances to evaluate. Is the manifest empty, or was every one dropped?")
    keys = [group_by] if isinstance(group_by, str) else list(group_by)
    return Evaluation(
        total=_scores(results),
        intervals={name: bootstrap_interval(results, unit) for name, unit in UNITS.items()},
        groups={key: _group(results, key) for key in keys},
        seconds=seconds,
        differences=None
        if compare is None
        else {name: paired_difference(results, compare, unit) for name, unit in UNITS.items()},
        compare_name=compare_name,
    )


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the tables of the groups, then the overall lines, where the eye ends."""
    for key, groups in evaluation.groups.items():
        console.print(_table(key, groups))
    for line in evaluation.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _scores(results: Sequence[Result]) -> Scores:
    return Scores(
        utterances=len(results),
        wrong=sum(result.words.errors > 0 for result in results),
        words=sum((result.words for result in results), ErrorCounts()),
        characters=sum((result.characters for result in results), ErrorCounts()),
        duration=sum(result.duration for result in results),
    )


def _group(results: Sequence[Result], key: str) -> dict[str, Scores]:
    """The scores by the value of a key: numbers by size, then texts, then the utterances without a value."""
    known = {name for result in results for name in result.fields}
    known |= {"speaker"} if any(result.speaker is not None for result in results) else set()
    name, below, limit = key.partition("<")
    if all(result.get(name) is None for result in results):
        raise ConfigError(f"group_by={key}: no utterance has a value for it. {near_matches(name, known - {name})}")
    groups: dict[tuple[int, float, str], list[Result]] = {}
    for result in results:
        value = result.get(name)
        groups.setdefault(_side(value, limit, key) if below else _order(value), []).append(result)
    return {order[2]: _scores(groups[order]) for order in sorted(groups)}


def _side(value: Any, limit: str, key: str) -> tuple[int, float, str]:
    """As `_order`, for the two groups below a limit, and at it or above."""
    try:
        border = float(limit)
    except ValueError:
        raise ConfigError(f"group_by={key}: '{limit}' is not a number to compare with.") from None
    order, number, _ = _order(value)
    if order:  # no number
        return 2, 0.0, NO_VALUE
    return (0, 0.0, f"< {limit}") if number < border else (0, 1.0, f"≥ {limit}")


def _order(value: Any) -> tuple[int, float, str]:
    """Where a group stands in its table, and its name there."""
    if value is None or value == "":
        return 2, 0.0, NO_VALUE
    name = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = nan
    return (0, number, name) if isfinite(number) else (1, 0.0, name)


def _table(key: str, groups: Mapping[str, Scores]) -> Table:
    table = Table(title=Text(f"by {key}"), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(Text(key), min_width=8, overflow="fold")
    for column in ("utterances", "WER %", "errors / words", "ins", "del", "sub", "CER %", "UER %"):
        table.add_column(column, justify="right", no_wrap=True)
    for value, scores in groups.items():
        words = scores.words
        table.add_row(
            Text(value),
            str(scores.utterances),
            _percent(words.rate),
            f"{words.errors} / {words.reference}",
            *(str(count) for count in (words.insertions, words.deletions, words.substitutions)),
            _percent(scores.characters.rate),
            f"{100 * scores.utterance_error_rate:.1f}",
        )
    return table


def _percent(rate: float) -> str:
    return "–" if isnan(rate) else f"{100 * rate:.2f}"


def _scores_dict(scores: Scores) -> dict[str, Any]:
    rates = {
        name.lower(): _plain({"rate": counts.rate, "errors": counts.errors} | asdict(counts))
        for name, counts in (("WER", scores.words), ("CER", scores.characters))
    }
    return {
        "utterances": scores.utterances,
        "wrong_utterances": scores.wrong,
        "uer": scores.utterance_error_rate,
        "duration": scores.duration,
    } | rates


def _plain(values: Any) -> Any:
    """The values with `None` for `nan`, which JSON does not know."""
    if isinstance(values, dict):
        return {key: _plain(value) for key, value in values.items()}
    return None if isinstance(values, float) and isnan(values) else values
