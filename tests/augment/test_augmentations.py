import numpy as np
import pytest
import torch
import torchaudio

from asr.augment import SpecAugment, SpeedPerturbation
from asr.augment.seeds import generators, other_seeds, utterance_seeds
from asr.errors import ConfigError


def seeds_of(*numbers):
    return torch.tensor(numbers, dtype=torch.int64)


def pad(utterances, value=0.0):
    return torch.nn.utils.rnn.pad_sequence(utterances, batch_first=True, padding_value=value)


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1, 0.83, 2.0])
def test_speed_equals_torchaudio(factor):
    for length in (1601, 4000):
        waveform = torch.randn(length, generator=torch.Generator().manual_seed(length))
        expected, _ = torchaudio.transforms.Speed(16000, factor)(waveform)
        lengths = torch.tensor([length])
        changed, new = SpeedPerturbation([factor])(waveform[None], lengths, seeds_of(7))
        assert changed.shape[1] == new.item() and abs(length / factor - new.item()) <= 1
        assert new.tolist() == [len(expected)]
        torch.testing.assert_close(changed[0], expected, atol=2e-5, rtol=0)


def test_speed_is_the_same_in_any_batch():
    random = torch.Generator().manual_seed(0)
    utterances = [torch.randn(int(n), generator=random) for n in (900, 16000, 4001, 2500, 8000, 8000)]
    lengths, seeds = torch.tensor([len(u) for u in utterances]), seeds_of(1, 2, 3, 4, 5, 6)
    speed = SpeedPerturbation([0.9, 1.0, 1.1])
    alone = [speed(u[None], lengths[k : k + 1], seeds[k : k + 1]) for k, u in enumerate(utterances)]
    for value in (0.0, float("nan")):  # whatever stands in the padding
        together, new = speed(pad(utterances, value), lengths, seeds)
        assert together.shape[1] == new.max()
        for row, (waveform, length) in enumerate(alone):
            assert new[row] == length[0]
            torch.testing.assert_close(together[row, : new[row]], waveform[0], atol=1e-6, rtol=0)
            assert not together[row, new[row] :].any()
    assert len({round(float(a / b), 1) for a, b in zip(new, lengths, strict=True)}) > 1  # several speeds were drawn


def test_speeds_are_drawn_evenly():
    waveforms, lengths = torch.zeros(600, 100), torch.full((600,), 100)
    _, new = SpeedPerturbation([0.9, 1.0, 1.1])(waveforms, lengths, utterance_seeds(0, 0, torch.arange(600)))
    values, counts = new.unique(return_counts=True)
    assert values.tolist() == [91, 100, 112] and counts.min() > 150
    assert lengths.eq(100).all()  # the caller's lengths stay as they are


def test_speeds_in_thousandths():
    waveforms, lengths = torch.zeros(1, 8000), torch.tensor([8000])
    for factor, length in ((0.975, 8206), (1.005, 7961)):
        assert SpeedPerturbation([factor])(waveforms, lengths, seeds_of(7))[1].tolist() == [length]


def test_speed_knows_its_fastest():
    assert SpeedPerturbation([0.9, 1.2]).max_speed == 1.2


@pytest.mark.parametrize("factors", [[], [0.4, 1.0], [1.0, 2.1]])
def test_speed_config_errors(factors):
    with pytest.raises(ConfigError, match=r"augment\.speed\.factors"):
        SpeedPerturbation(factors)


def masks(features) -> tuple[np.ndarray, np.ndarray]:
    """Of features (T, D) that were all one: which frames and which features are wholly zero."""
    zero = (features == 0).numpy()
    return zero.all(1), zero.all(0)


def spans(mask: np.ndarray) -> int:
    return int(np.sum(np.diff(np.concatenate([[0], mask.astype(int)])) == 1))


def test_masks_are_bounded_and_within_the_utterance():
    augment = SpecAugment(frequency_masks=2, frequency_width=10, time_masks=3, time_width=0.1)
    lengths = torch.randint(1, 200, (200,), generator=torch.Generator().manual_seed(0))
    features = torch.ones(200, 250, 40)
    masked, same = augment(features, lengths, utterance_seeds(0, 0, torch.arange(200)))
    assert torch.equal(same, lengths) and features.eq(1).all()
    shares = []
    for row, length in enumerate(lengths.tolist()):
        frames, bands = masks(masked[row, :length])
        assert spans(frames) <= 3 and frames.sum() <= 3 * int(0.1 * length)
        assert spans(bands) <= 2 and bands.sum() <= 20
        # nothing but whole frames and whole bands
        assert torch.equal(masked[row, :length] == 0, torch.from_numpy(frames[:, None] | bands[None, :]))
        after, _ = masks(masked[row, length:])
        assert not after.any()
        shares.append((frames.mean(), bands.mean()))
    assert 0.08 < np.mean([s[0] for s in shares]) < 0.17  # 3 × 5 %, less overlaps and rounding
    assert 0.17 < np.mean([s[1] for s in shares]) < 0.25  # 2 × 5 of 40


def test_masks_are_a_function_of_the_seed_and_not_of_the_batch():
    augment = SpecAugment()
    random = torch.Generator().manual_seed(0)
    utterances = [torch.randn(n, 80, generator=random) for n in (50, 500, 120)]
    lengths, seeds = torch.tensor([50, 500, 120]), seeds_of(11, 12, 13)
    together, _ = augment(pad(utterances), lengths, seeds)
    again, _ = augment(pad(utterances), lengths, seeds)
    assert torch.equal(together, again)
    for row, utterance in enumerate(utterances):
        alone, _ = augment(utterance[None], lengths[row : row + 1], seeds[row : row + 1])
        assert torch.equal(alone[0], together[row, : len(utterance)])
    other, _ = augment(pad(utterances), lengths, seeds + 100)
    assert not torch.equal(together, other)


def test_views_and_twins_have_seeds_of_their_own():
    """Not those of each other, nor of any utterance of this epoch and the next."""
    seeds = [utterance_seeds(0, epoch, torch.arange(500)) for epoch in range(2)]
    others = [other_seeds(seeds[0], view, twin) for view in range(3) for twin in range(3)]
    assert torch.equal(others[0], seeds[0])
    assert len(torch.cat([*others, seeds[1]]).unique()) == 5000 and min(int(drawn.min()) for drawn in others) >= 0
    assert torch.equal(other_seeds(seeds[0][7:9], 1, 2), others[5][7:9])


def test_masks_reach_both_ends():
    masked, _ = SpecAugment(0, 0, 1, 0.5)(
        torch.ones(300, 10, 2), torch.full((300,), 10), utterance_seeds(0, 0, torch.arange(300))
    )
    hidden = (masked == 0).all(2).float().mean(0)
    assert hidden.min() > 0.02


def test_more_bands_than_features():
    masked, _ = SpecAugment(frequency_width=100)(torch.ones(20, 30, 8), torch.full((20,), 30), torch.arange(20))
    assert (masked == 0).any()


def test_adaptive_masks_grow_with_the_utterance():
    augment = SpecAugment(frequency_masks=0, time_masks=0.04, time_width=0.04, most_time_masks=20)
    lengths = torch.tensor([10, 24, 25, 100, 300, 900])
    shares = torch.zeros(6)
    for number in range(40):
        masked, _ = augment(torch.ones(6, 900, 4), lengths, torch.arange(6) + 6 * number)
        for row, length in enumerate(lengths.tolist()):
            frames, _ = masks(masked[row, :length])
            count = min(int(0.04 * length), 20)
            assert spans(frames) <= count and frames.sum() <= count * int(0.04 * length)
            assert not (masked[row, length:] == 0).any()
            shares[row] += frames.mean() / 40
    assert shares[:2].eq(0).all()  # too short for a mask
    assert 0.05 < shares[3] < 0.09 and 0.18 < shares[4] < 0.25  # 4 and 12 masks of 2 % in the mean, less overlaps
    assert 0.29 < shares[5] < 0.37  # 20, not 36


@pytest.mark.parametrize(
    "options",
    [{"time_masks": -1}, {"time_masks": 1.5}, {"frequency_width": -1}, {"time_width": 1.1}, {"most_time_masks": -1}],
)
def test_specaugment_config_errors(options):
    with pytest.raises(ConfigError, match=r"augment\.specaugment"):
        SpecAugment(**options)


def test_utterance_seeds_are_distinct():
    """Over utterances, epochs and seeds, and those of the training's steps, which have negative numbers."""
    indices = torch.arange(-100, 400)
    seeds = torch.cat([utterance_seeds(seed, epoch, indices) for seed in range(5) for epoch in range(10)])
    assert seeds.dtype == torch.int64 and seeds.min() >= 0
    assert len(seeds.unique()) == 5 * 10 * 500
    first = [int(np.random.default_rng(int(seed)).integers(1000)) for seed in seeds[:500]]
    assert len(set(first)) > 350  # 393 expected of 500 draws


def test_utterance_seeds_depend_on_nothing_else():
    whole = utterance_seeds(3, 4, torch.arange(100))
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(utterance_seeds(3, 4, torch.tensor([17, 5])), whole[[17, 5]])


def test_purposes_do_not_share_their_draws():
    draws = [[g.random() for g in generators(torch.arange(50), purpose)] for purpose in (1, 2)]
    assert not set(draws[0]) & set(draws[1])
