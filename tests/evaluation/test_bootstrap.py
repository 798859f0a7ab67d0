from dataclasses import replace

import numpy as np
import pytest

from asr.errors import DataError
from asr.evaluation import ErrorCounts, Result, bootstrap_interval, paired_difference


def result(number, errors, reference=10, speaker=None):
    counts = ErrorCounts(int(errors), 0, 0, reference)
    return Result(f"u{number:05d}", "r", "h", counts, counts, speaker)


def speakers_results(seed, speakers=30, each=20, spread=True):
    """Utterances whose error rate depends on the speaker: 5 % or 35 %."""
    generator = np.random.default_rng(seed)
    rates = generator.choice([0.05, 0.35], size=speakers) if spread else np.full(speakers, 0.2)
    return [
        result(s * each + u, generator.binomial(10, rates[s]), speaker=f"s{s}")
        for s in range(speakers)
        for u in range(each)
    ]


def width(interval):
    return interval.high - interval.low


def test_deterministic_by_seed_and_independent_of_order():
    results = speakers_results(0)
    first = bootstrap_interval(results)
    assert first == bootstrap_interval(results) == bootstrap_interval(results[::-1])
    assert first != bootstrap_interval(results, seed=1)
    assert (first.clusters, first.over, first.resamples) == (30, "speakers", 2000)
    alone = [replace(r, speaker=None) for r in results]
    assert bootstrap_interval(alone) == bootstrap_interval(alone[::-1])


def test_interval_covers_the_true_rate():
    covered = 0
    for seed in range(200):
        interval = bootstrap_interval(speakers_results(seed, each=5), resamples=1000)
        covered += interval.low <= 0.2 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_width_is_that_of_the_normal_approximation():
    results = [result(n, e) for n, e in enumerate(np.random.default_rng(0).binomial(10, 0.2, size=1000))]
    assert width(bootstrap_interval(results)) == pytest.approx(2 * 1.96 * (0.2 * 0.8 / 10_000) ** 0.5, rel=0.1)


def test_speakers_are_the_draws():
    correlated = speakers_results(3)
    alone = [replace(r, speaker=None) for r in correlated]
    assert width(bootstrap_interval(correlated)) > 2 * width(bootstrap_interval(alone))
    independent = speakers_results(3, spread=False)
    alone = [replace(r, speaker=None) for r in independent]
    assert width(bootstrap_interval(independent)) < 1.5 * width(bootstrap_interval(alone))


def test_few_things_to_draw():
    one_speaker = [result(n, n % 3, speaker="s") for n in range(10)]
    assert bootstrap_interval(one_speaker).over == "utterances of one speaker"
    assert bootstrap_interval(one_speaker).clusters == 10
    mixed = bootstrap_interval([*one_speaker, result(99, 1), result(98, 0)])
    assert (mixed.clusters, mixed.over) == (3, "speakers and utterances without one")
    alone = bootstrap_interval([result(0, 3)])
    assert np.isnan(alone.low) and alone.format() == "no interval over 1 utterances"
    assert np.isnan(bootstrap_interval([result(0, 3, 0), result(1, 2, 0)]).low)  # no reference words


def test_difference_of_equal_results_is_zero():
    results = speakers_results(0)
    difference = paired_difference(results, results[::-1])
    assert (difference.value, difference.interval.low, difference.interval.high) == (0, 0, 0)
    assert difference.better == 0.5 and difference.other_references == 0


def test_difference_is_antisymmetric():
    first, second = speakers_results(0), speakers_results(1)
    there, back = paired_difference(first, second), paired_difference(second[::-1], first)
    assert there.value == -back.value != 0
    assert there.interval.low == pytest.approx(-back.interval.high)
    assert there.interval.high == pytest.approx(-back.interval.low)
    assert there.better == pytest.approx(1 - back.better)


def test_pairing_sees_what_the_two_intervals_hide():
    """A recognizer a little better for every speaker is surely better, though the speakers spread wide."""
    second = speakers_results(0)
    first = [replace(r, words=replace(r.words, substitutions=max(0, r.words.substitutions - 1))) for r in second]
    difference = paired_difference(first, second)
    assert difference.interval.high < 0 and difference.better == 1
    assert width(difference.interval) < width(bootstrap_interval(second)) / 2
    text = difference.format("WER", "base")
    assert "of base: -" in text and "points, 95 % interval -" in text and "better in 100 % of resamples" in text


def test_difference_of_other_utterances_is_an_error():
    results = [result(n, 1) for n in range(10)]
    with pytest.raises(DataError, match=r"5 are only in the first \(u00005, u00006, u00007, …\)"):
        paired_difference(results, results[:5])
    with pytest.raises(DataError, match="u00000: two utterances have this id"):
        paired_difference(results[:1] * 2, results)
    other = [replace(results[0], reference="R"), *results[1:]]
    assert paired_difference(results, other).other_references == 1
