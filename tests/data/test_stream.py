import numpy as np
import pytest

from asr.data.sampler import BucketSampler
from asr.data.stream import StreamSampler
from asr.errors import ConfigError


def draw(case: int) -> tuple[np.ndarray, dict]:
    """Durations and options of a sampler, at random but for the case."""
    random = np.random.default_rng(case)
    count = int(random.choice([1, 2, 7, 50, 333, 2000]))
    files = np.sort(random.integers(0, max(1, count // int(random.choice([1, 5, 50]))), count))
    options = {
        "batch_seconds": float(random.choice([5, 20, 60])),
        "group": int(random.choice([1, 2, 4, 6])),
        "buckets": int(random.choice([1, 3, 20])),
        "seed": case,
        "files": random.permutation(count)[np.unique(files, return_inverse=True)[1]],
        "buffer": int(random.choice([1, 20, 300])),
    }
    return random.uniform(0.3, 1 + 14 * random.random(), count), options


CASES = pytest.mark.parametrize("case", range(24))


def flat(batches) -> list[int]:
    return [int(k) for batch in batches for k in batch]


@CASES
def test_every_utterance_once_an_epoch_as_many_steps_in_each(case):
    seconds, options = draw(case)
    sampler, twin = StreamSampler(seconds, **options), StreamSampler(seconds, **options)
    for epoch in range(3):
        plan = sampler.plan(epoch)
        assert sorted(flat(plan)) == list(range(len(seconds)))
        assert len(plan) == sampler.micro_batches and len(plan) % options["group"] == 0
        assert all(plan.utterances(step) for step in range(len(plan) // options["group"]))
        assert flat(twin.plan(epoch)) == flat(plan)
        for batch in plan:
            assert len(batch) < 2 or len(batch) * seconds[batch].max() <= options["batch_seconds"] + 1e-9
    if len(seconds) >= 50:
        assert len({tuple(flat(sampler.plan(epoch))) for epoch in range(3)}) == 3


@CASES
def test_ranks_share_each_step_and_resume_with_the_tail(case):
    seconds, options = draw(case)
    whole = list(StreamSampler(seconds, **options))
    ranks = options["group"]
    samplers = [StreamSampler(seconds, **options, rank=r, world_size=ranks) for r in range(ranks)]
    parts = [list(sampler) for sampler in samplers]
    assert [batch for step in zip(*parts, strict=True) for batch in step] == whole
    samplers[0].position = len(parts[0]) // 2 * ranks
    for rank, part in enumerate(parts):
        resumed = StreamSampler(seconds, **options, rank=rank, world_size=ranks)
        resumed.load_state_dict(samplers[0].state_dict())
        assert list(resumed) == part[len(part) // 2 :]


@CASES
def test_shares(case):
    """An epoch draws the share of each lane's utterances, always as many, and in the long run all of them."""
    seconds, options = draw(case)
    shares = np.where(np.arange(len(seconds)) % 3, 0.5, 1.0)
    sampler = StreamSampler(seconds, **options, shares=shares, indices=10 * np.arange(len(seconds)))
    plans = [sampler.plan(epoch) for epoch in range(8)]
    assert {len(plan) for plan in plans} == {sampler.micro_batches}
    drawn = {tuple(sorted(flat(plan))) for plan in plans}
    assert {len(set(one)) for one in drawn} == {len(next(iter(drawn)))} and (len(drawn) > 1 or len(seconds) < 50)
    whole = set(range(0, 10 * len(seconds), 30))
    assert all(whole <= set(one) for one in drawn) and set().union(*drawn) <= set(range(0, 10 * len(seconds), 10))


@pytest.fixture
def large():
    """100 shards of 200 utterances, speech of one shard longer than of another."""
    random = np.random.default_rng(0)
    files = np.arange(20_000) // 200
    return np.clip(random.gamma(3, 2, 20_000) * random.uniform(0.6, 1.5, 100)[files], 0.5, 20), files


def test_each_rank_reads_its_own_files_one_after_the_other(large):
    seconds, files = large
    readers = [
        StreamSampler(seconds, 60, group=4, files=files, buffer=1000, rank=rank, world_size=4) for rank in range(4)
    ]
    seen = []
    for sampler in readers:
        batches = [[k for k, _ in batch if k >= 0] for batch in sampler]
        seen.append(set(files[flat(batches)]))
        first = dict.fromkeys(files[flat(batches)])  # files in the order in which they are begun
        begun = {file: number for number, file in enumerate(first)}
        ahead = [
            max(begun[files[k]] for k in batch) - min(begun[files[k]] for k in batch) for batch in batches if batch
        ]
        assert np.mean(ahead) < 6 and len(first) > 20  # a window has 5 files, and some wait for their batch
        other = readers[0].plan(1)
        assert list(dict.fromkeys(files[flat(other[:40])])) != list(first)[:5]
    assert sum(map(len, seen)) <= 100 + 3  # a file at the edge of two lanes is read twice


def test_steps_are_as_full_and_even_as_without(large):
    seconds, files = large
    stream = StreamSampler(seconds, 60, group=4, files=files, buffer=1000)
    whole = BucketSampler(seconds, 60, group=4)
    assert stream.micro_batches < 1.03 * whole.micro_batches
    plan = stream.plan(0)
    steps = [[seconds[batch] for batch in plan[k : k + 4]] for k in range(0, len(plan), 4)]
    longest = [max(batch.max() for batch in step if len(batch)) for step in steps]
    shortest = [min(batch.max() for batch in step if len(batch)) for step in steps]
    assert np.mean(np.divide(shortest, longest)) > 0.9  # one bucket in a step
    means = [np.mean(np.concatenate(step)) for step in steps]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.3


def test_names_the_files_ahead_of_their_use(large):
    seconds, files = large
    sampler = StreamSampler(seconds, 60, group=4, files=files, buffer=1000, rank=1, world_size=4)
    for position in (0, sampler.micro_batches // 8 * 4):
        sampler.position = position
        calls: list[set[int]] = []
        sampler.ahead = lambda indices, calls=calls: calls.append(set(files[indices]))
        for batch in sampler:
            assert {files[k] for k, _ in batch if k >= 0} <= set().union(*calls)
        assert len(calls) > 2 and max(map(len, calls)) < 25  # two windows, never the whole corpus


def test_refuses_to_resume_with_another_buffer(large):
    seconds, files = large
    one, other = (StreamSampler(seconds, 60, files=files, buffer=buffer) for buffer in (1000, 2000))
    one.position = 5
    for state, sampler in ((one.state_dict(), other), (one.state_dict(), BucketSampler(seconds, 60))):
        with pytest.raises(ConfigError, match="Cannot resume within an epoch"):
            sampler.load_state_dict(state)
