from __future__ import annotations

import numpy as np
import pytest

from asr.data.sampler import BucketSampler
from asr.data.stream import StreamSampler
from asr.errors import ConfigError


def draw(case: int) -> tuple[np.ndarray, dict]:
    """Durations and options of a sampler, at random but for the case."""
    random = np.random.default_rng(case)
    count = int(random.choice([1, 2, 7, 50, 333]))
    seconds = random.uniform(0.3, 1 + 14 * random.random(), count)
    if case % 4 == 0:
        seconds[:] = seconds[0]  # all of a length
    options = {
        "batch_seconds": float(random.choice([5, 20, 60])),
        "group": int(random.choice([1, 2, 4, 6])),
        "buckets": int(random.choice([1, 3, 20])),
        "seed": case,
    }
    return seconds, options


CASES = pytest.mark.parametrize("case", range(24))


def flat(batches) -> list[int]:
    return [int(k) for batch in batches for k in batch]


def numbers(steps) -> list[list[int]]:
    """The utterance numbers of what a sampler yields, without the -1 of empty micro-batches."""
    return [[k for k, _ in batch if k >= 0] for batch in steps]


@CASES
def test_every_utterance_once_an_epoch(case):
    seconds, options = draw(case)
    sampler = BucketSampler(seconds, **options)
    for epoch in range(3):
        plan = sampler.plan(epoch)
        assert sorted(flat(plan)) == list(range(len(seconds)))
        assert len(plan) == sampler.micro_batches == len(sampler)
        assert len(plan) % options["group"] == 0
        sampler.set_epoch(epoch)
        assert numbers(sampler) == [batch.tolist() for batch in plan]


@CASES
def test_padded_duration_is_bounded(case):
    seconds, options = draw(case)
    for batch in BucketSampler(seconds, **options).plan(0):
        if len(batch) > 1:
            assert len(batch) * seconds[batch].max() <= options["batch_seconds"] + 1e-9


@CASES
def test_function_of_seed_and_epoch(case):
    seconds, options = draw(case)
    sampler, twin = BucketSampler(seconds, **options), BucketSampler(seconds, **options)
    plans = [flat(sampler.plan(epoch)) for epoch in range(3)]
    assert [flat(twin.plan(epoch)) for epoch in (2, 0, 1)] == [plans[2], plans[0], plans[1]]
    if len(seconds) >= 50:
        other = BucketSampler(seconds, **options | {"seed": case + 1})
        assert len({tuple(plan) for plan in [*plans, flat(other.plan(0))]}) == 4


@CASES
def test_ranks_share_each_step(case):
    """Step k of W ranks is the micro-batches kW … kW + W - 1 of the one list, so W ranks = accumulation W."""
    seconds, options = draw(case)
    whole = list(BucketSampler(seconds, **options))
    for ranks in (r for r in (1, 2, 3, 4, 6) if options["group"] % r == 0):
        parts = [list(BucketSampler(seconds, **options, rank=r, world_size=ranks)) for r in range(ranks)]
        assert {len(part) for part in parts} == {len(whole) // ranks}
        assert [batch for step in zip(*parts, strict=True) for batch in step] == whole


@CASES
def test_utterances_of_the_step(case):
    seconds, options = draw(case)
    batches = list(BucketSampler(seconds, **options))
    for first in range(0, len(batches), options["group"]):
        step = batches[first : first + options["group"]]
        assert all(batch for batch in step)
        utterances = sum(len(batch) for batch in numbers(step))
        assert {said for batch in step for _, said in batch} == {utterances} and utterances > 0


@CASES
def test_resumes_with_the_tail(case):
    seconds, options = draw(case)
    ranks = options["group"] if case % 2 else 1
    whole = BucketSampler(seconds, **options, world_size=ranks)
    whole.set_epoch(2)
    expected = list(whole)
    for done in {0, len(expected) // 2, len(expected)}:
        whole.position = done * ranks
        resumed = BucketSampler(seconds, **options, world_size=ranks)
        resumed.load_state_dict(whole.state_dict())
        resumed.set_epoch(2)  # as Lightning does: it must not lose the position
        assert resumed.state_dict() == whole.state_dict()
        assert list(resumed) == expected[done:]
        assert len(resumed) == len(expected)
        resumed.set_epoch(3)
        assert len(list(resumed)) == len(expected)


def test_resumes_on_other_ranks():
    """The position counts micro-batches of all ranks: 4 ranks go on where 1 rank with accumulation 4 stood."""
    seconds = np.random.default_rng(0).uniform(1, 9, 400)
    one = BucketSampler(seconds, 30, group=4)
    expected = list(one)
    one.position = 8
    four = [BucketSampler(seconds, 30, group=4, rank=r, world_size=4) for r in range(4)]
    for sampler in four:
        sampler.load_state_dict(one.state_dict())
    assert [batch for step in zip(*four, strict=True) for batch in step] == expected[8:]


@pytest.mark.parametrize("change", [{"group": 2}, {"batch_seconds": 20.0}, {"seed": 1}, {"curriculum": 1}])
def test_refuses_to_resume_in_another_list(change):
    seconds = np.random.default_rng(0).uniform(1, 9, 400)
    options = {"batch_seconds": 30.0, "group": 4}
    sampler, other = BucketSampler(seconds, **options), BucketSampler(seconds, **options | change)
    sampler.position = 8
    with pytest.raises(ConfigError, match="resume"):
        other.load_state_dict(sampler.state_dict())
    sampler.position = sampler.micro_batches  # between epochs nothing can be lost
    other.load_state_dict(sampler.state_dict())
    other.set_epoch(1)
    assert sorted(flat(numbers(other))) == list(range(400))


def test_similar_lengths_in_a_step():
    """Padding is a few percent of what mixing all lengths would need, also over the ranks of a step."""
    seconds = np.random.default_rng(0).uniform(1, 15, 6000)
    sampler = BucketSampler(seconds, 60, group=4)
    plan = sampler.plan(0)
    steps = [np.concatenate(plan[k : k + 4]) for k in range(0, len(plan), 4)]
    spread = [seconds[step].max() - seconds[step].min() for step in steps]
    assert np.median(spread) < 2 and np.max(spread) < 7
    padded = sum(len(batch) * seconds[batch].max() for batch in plan if len(batch))
    assert padded < 1.06 * seconds.sum()


def test_long_and_short_steps_are_mixed():
    seconds = np.random.default_rng(0).uniform(1, 15, 3000)
    means = [seconds[batch].mean() for batch in BucketSampler(seconds, 60).plan(0)]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.2
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


def test_shuffles_within_buckets():
    seconds = np.full(64, 2.0)
    sampler = BucketSampler(seconds, 8, buckets=1)
    partners = {frozenset(batch.tolist()) for epoch in range(4) for batch in sampler.plan(epoch)}
    assert len(partners) > 48  # hardly a micro-batch comes twice


def test_chosen_utterances_only():
    indices = np.array([3, 14, 15, 92, 65])
    sampler = BucketSampler(np.array([5.0, 1, 4, 2, 3]), 6, indices=indices)
    assert sorted(flat(sampler.plan(0))) == sorted(indices)
    long = BucketSampler(np.array([5.0, 1, 4, 2, 3]), 6, indices=indices, buckets=1).plan(0)
    assert [len(batch) for batch in long] == [1] * 5  # the longest bounds all of its bucket


def test_utterance_longer_than_the_bound_stands_alone():
    plan = BucketSampler(np.array([1.0, 1.0, 100.0]), 5).plan(0)
    assert [2] in [batch.tolist() for batch in plan]


def test_ranks_must_divide_the_step():
    with pytest.raises(ValueError, match="3 micro-batches does not divide among 2 ranks"):
        BucketSampler(np.ones(4), 5, group=3, world_size=2)


@CASES
def test_shares(case):
    """Of each share so many utterances, other ones in each epoch, in as many micro-batches."""
    seconds, options = draw(case)
    shares = np.random.default_rng(case).choice([0.2, 0.5, 1], len(seconds))
    indices = 10 * np.arange(len(seconds))
    sampler = BucketSampler(seconds, **options, indices=indices, shares=shares)
    twin = BucketSampler(seconds, **options, indices=indices, shares=shares)
    plans = [sampler.plan(epoch) for epoch in range(40)]
    counts = np.zeros(len(seconds), int)
    for epoch, plan in enumerate(plans):
        met = np.array(flat(plan), int) // 10
        assert len(set(met)) == len(met)
        for share in (0.2, 0.5, 1):
            of_share = (shares == share).sum()
            assert (shares[met] == share).sum() == max(round(share * of_share), min(1, of_share))
        for batch in plan:
            if len(batch) > 1:
                assert len(batch) * seconds[batch // 10].max() <= options["batch_seconds"] + 1e-9
        assert len(plan) == sampler.micro_batches
        assert flat(plan) == flat(twin.plan(epoch))
        counts[met] += 1
    assert (counts[shares == 1] == 40).all()
    if len(seconds) == 333:
        assert len({tuple(sorted(flat(plan))) for plan in plans}) == 40
        for share in (0.2, 0.5):  # 40 draws: the standard deviation is at most 3.2
            assert (abs(counts[shares == share] - 40 * share) < 16).all()


@pytest.mark.parametrize(("few", "share"), [(20, 0.5), (100, 0.1), (100, 0.75)])
@pytest.mark.parametrize("stream", [False, True])
def test_all_of_a_share_are_as_likely_to_be_met(few, share, stream):
    seconds = np.random.default_rng(0).uniform(1, 15, 2000 + few)
    shares = np.append(np.ones(2000), np.full(few, share))
    options = {"files": np.arange(len(seconds)) % 40, "buffer": 500} if stream else {}
    sampler = (StreamSampler if stream else BucketSampler)(seconds, 30, shares=shares, **options)
    counts = np.bincount(np.concatenate([flat(sampler.plan(epoch)) for epoch in range(300)]))
    assert (counts[:2000] == 300).all()
    # the standard deviation of an utterance's count is at most 8.7
    assert np.abs(counts[2000:] - 300 * share).max() < 45
    assert counts[2000:].sum() == 300 * round(few * share)


def test_shares_hold_at_every_length():
    seconds = np.random.default_rng(0).uniform(1, 15, 2000)
    plan = BucketSampler(seconds, 60, shares=np.full(2000, 0.25)).plan(0)
    lengths = np.histogram(seconds[flat(plan)], 7, (1, 15))[0] / np.histogram(seconds, 7, (1, 15))[0]
    assert len(flat(plan)) == 500 and np.abs(lengths - 0.25).max() < 0.03


@CASES
def test_curriculum(case):
    """The first epochs go from short to long; those after them are as if there had been none."""
    seconds, options = draw(case)
    sampler, plain = BucketSampler(seconds, **options, curriculum=2), BucketSampler(seconds, **options)
    assert sampler.micro_batches == plain.micro_batches
    for epoch in range(4):
        plan = sampler.plan(epoch)
        if epoch < 2:
            steps = [np.concatenate(plan[k : k + options["group"]]) for k in range(0, len(plan), options["group"])]
            longest = [seconds[step].max() for step in steps]
            assert longest == sorted(longest)
            assert sorted(flat(plan)) == list(range(len(seconds))) and len(plan) == sampler.micro_batches
        else:
            assert flat(plan) == flat(plain.plan(epoch))
    if options["group"] == 1:  # strictly: no utterance is shorter than any of a step before
        assert seconds[flat(sampler.plan(0))].tolist() == sorted(seconds)
