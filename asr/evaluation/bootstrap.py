"""Bootstrap intervals of an error rate, and of the paired difference of two.

The errors of one speaker resemble each other: speakers, not utterances, are the independent draws. A resample
takes as many speakers as there are, with replacement, and sums their counts; its error rate is the ratio

    W* = sum_s e_s / sum_s n_s        e_s errors, n_s reference words of the drawn speaker s

and the 2.5 % and 97.5 % quantiles of many W* bound the interval (the percentile method: Efron & Tibshirani 1993,
An Introduction to the Bootstrap, ch. 13; for error rates: Bisani & Ney 2004, Bootstrap estimates for confidence
intervals in ASR performance evaluation, ICASSP). With few speakers (under about ten) or no errors at all the
interval is too narrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from asr.errors import DataError
from asr.evaluation.counts import ErrorCounts
from asr.evaluation.result import Result

Unit = Literal["words", "characters"]
QUANTILES = (0.025, 0.975)
RESAMPLES = 2000
BLOCK = 4_000_000  # draws held in memory at a time


@dataclass(frozen=True)
class Interval:
    """A 95 % interval; its bounds are `nan` where there is but one thing to draw, or no reference."""

    low: float
    high: float
    clusters: int
    """How many there are to draw from."""
    over: str
    """What is drawn: speakers, or utterances."""
    resamples: int

    def format(self) -> str:
        over = f"{self.clusters} {self.over}"
        if np.isnan(self.low):
            return f"no interval over {over}"
        return f"95 % interval {100 * self.low:.2f} to {100 * self.high:.2f} over {over}"


@dataclass(frozen=True)
class PairedDifference:
    """The error rate of one result minus that of another on the same utterances; below 0 the first is better."""

    first: ErrorCounts
    second: ErrorCounts
    interval: Interval
    better: float
    """The share of resamples in which the first has the lower error rate, ties counted half (the "probability
    of improvement" of Bisani & Ney)."""
    other_references: int
    """Utterances whose two references differ, say by text normalisation."""

    @property
    def value(self) -> float:
        return self.first.rate - self.second.rate

    def format(self, name: str, other: str) -> str:
        rates = f"{name} {100 * self.first.rate:.2f} % against {100 * self.second.rate:.2f} % of {other}"
        better = f"better in {100 * self.better:.0f} % of resamples"
        text = f"{rates}: {100 * self.value:+.2f} points, {self.interval.format()}, {better}"
        if self.other_references:
            text += f"; the references of {self.other_references} utterances differ"
        return text


def bootstrap_interval(
    results: Sequence[Result], unit: Unit = "words", resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The 95 % interval of the error rate over speakers.

    An utterance without a speaker is a cluster of its own; with one speaker only, the utterances are drawn and
    the interval holds for that speaker. The order of the results does not matter.
    """
    clusters, over = _clusters(results)
    sums = _cluster_sums(clusters, [getattr(result, unit) for result in results])
    errors, reference = _resample(sums, resamples, seed).T
    return _interval(_ratio(errors, reference), len(sums), over)


def paired_difference(
    first: Sequence[Result], second: Sequence[Result], unit: Unit = "words", resamples: int = RESAMPLES, seed: int = 0
) -> PairedDifference:
    """The difference of two results' error rates, with its 95 % interval over speakers.

    Both are summed over the same draws, so that what makes a speaker hard for both cancels out (Bisani & Ney 2004):

        dW* = sum_s e_s / sum_s n_s - sum_s e'_s / sum_s n'_s

    Speakers are those of `first`. Exchanging the two changes the sign and nothing else.

    Raises:
        DataError: the two are not of the same utterances, or an id is not unique.
    """
    first, others = sorted(first, key=lambda result: result.id), _by_id(second)
    _check_same_utterances(_by_id(first), others)
    second = [others[result.id] for result in first]
    clusters, over = _clusters(first)
    counts = [[getattr(result, unit) for result in results] for results in (first, second)]
    sums = np.hstack([_cluster_sums(clusters, each) for each in counts])
    errors, reference, other_errors, other_reference = _resample(sums, resamples, seed).T
    differences = _ratio(errors, reference) - _ratio(other_errors, other_reference)
    return PairedDifference(
        first=sum(counts[0], ErrorCounts()),
        second=sum(counts[1], ErrorCounts()),
        interval=_interval(differences, len(sums), over),
        better=float(np.mean(differences < 0) + np.mean(differences == 0) / 2),
        other_references=sum(a.reference != b.reference for a, b in zip(first, second, strict=True)),
    )


def _clusters(results: Sequence[Result]) -> tuple[np.ndarray, str]:
    """The cluster number of each utterance, and what a cluster is."""
    keys = [(0, result.speaker) if result.speaker is not None else (1, result.id) for result in results]
    if len(set(keys)) < 2 or all(kind == 1 for kind, _ in keys):  # sorted by id: independent of the order
        order = sorted(range(len(results)), key=lambda i: results[i].id)
        return np.argsort(order), "utterances of one speaker" if keys[0][0] == 0 else "utterances"
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    over = "speakers" if all(kind == 0 for kind, _ in keys) else "speakers and utterances without one"
    return np.array([numbers[key] for key in keys]), over


def _cluster_sums(clusters: np.ndarray, counts: Iterable[ErrorCounts]) -> np.ndarray:
    """(C, 2): errors and reference length of each cluster."""
    columns = np.array([(count.errors, count.reference) for count in counts], dtype=float)
    return np.stack([np.bincount(clusters, weights=column) for column in columns.T], axis=1)


def _resample(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(R, K): the sums (C, K) of C clusters drawn with replacement, R times."""
    generator, size = np.random.default_rng(seed), len(sums)
    block = max(1, BLOCK // (size * sums.shape[1]))
    blocks = (min(block, resamples - start) for start in range(0, resamples, block))
    return np.concatenate([sums[generator.integers(size, size=(rows, size))].sum(axis=1) for rows in blocks])


def _ratio(errors: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return np.divide(errors, reference, out=np.full(len(errors), np.nan), where=reference > 0)


def _interval(values: np.ndarray, clusters: int, over: str) -> Interval:
    known = values[~np.isnan(values)]
    if clusters < 2 or not len(known):
        return Interval(float("nan"), float("nan"), clusters, over, len(values))
    low, high = np.quantile(known, QUANTILES)
    return Interval(float(low), float(high), clusters, over, len(values))


def _by_id(results: Sequence[Result]) -> dict[str, Result]:
    found: dict[str, Result] = {}
    for result in results:
        if result.id in found:
            raise DataError(f"{result.id}: two utterances have this id; results can only be paired by unique ids.")
        found[result.id] = result
    return found


def _check_same_utterances(first: dict[str, Result], second: dict[str, Result]) -> None:
    sides = (("first", first.keys() - second.keys()), ("second", second.keys() - first.keys()))
    parts = [
        f"{len(ids)} are only in the {name} ({', '.join(sorted(ids)[:3])}{', …' if len(ids) > 3 else ''})"
        for name, ids in sides
        if ids
    ]
    if parts:
        raise DataError(
            f"The two results are not of the same utterances: {', '.join(parts)}. Evaluate both on the same manifest."
        )
