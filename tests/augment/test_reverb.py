from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asr.augment import Reverb
from asr.errors import AsrError, ConfigError
from asr.testing import check_augment


def response(**options) -> np.ndarray:
    """What becomes of one click at sample 100, from there on and relative to its direct sound."""
    click = torch.zeros(1, 16000)
    click[0, 100] = 0.5
    wet, _ = Reverb(probability=1, **options)(click, torch.tensor([16000]), torch.tensor([5]))
    assert wet[0].abs().argmax() == 100 and wet[0, :100].abs().max() < 1e-5 * wet[0, 100]
    return (wet[0, 100:] / wet[0, 100]).double().numpy()


@pytest.mark.parametrize("seconds", [0.2, 0.6])
def test_simulated_rooms_decay_as_they_should(seconds: float) -> None:
    """The reverberation time by Schroeder's backward integration, from -5 to -35 dB."""
    echoes = response(lowest_rt60=seconds, highest_rt60=seconds, lowest_drr_db=0, highest_drr_db=0)[1:]
    decay = 10 * np.log10(np.cumsum(echoes[::-1] ** 2)[::-1] / np.sum(echoes**2) + 1e-12)
    part = np.flatnonzero((decay < -5) & (decay > -35))
    slope, _ = np.polyfit(part / 16000, decay[part], 1)
    assert -60 / slope == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize("ratio", [0.0, 10.0])
def test_direct_sound_over_echoes(ratio: float) -> None:
    h = response(lowest_rt60=0.3, highest_rt60=0.3, lowest_drr_db=ratio, highest_drr_db=ratio)
    assert 10 * np.log10(1 / np.sum(h[1:] ** 2)) == pytest.approx(ratio, abs=0.1)
    assert not (np.abs(h[1:32]) > 1e-4).any() and np.abs(h[32:60]).max() > 1e-3  # silence before the first echo


def test_measured_rooms_are_convolved_from_their_peak_on(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    h = np.concatenate([0.01 * random.standard_normal(300), [-0.9], 0.2 * random.standard_normal(500)])
    soundfile.write(tmp_path / "room.wav", np.stack([h, random.standard_normal(801)], 1), 16000, subtype="FLOAT")
    lengths = torch.tensor([3000, 200])
    waveforms = torch.zeros(2, 3000)
    waveforms[0], waveforms[1, :200] = torch.from_numpy(random.standard_normal((3000,))), 0.01
    wet, same = Reverb(str(tmp_path), probability=1)(waveforms, lengths, torch.tensor([1, 2]))
    assert torch.equal(same, lengths)
    for row, length in enumerate(lengths.tolist()):
        dry = waveforms[row, :length].double().numpy()
        expected = np.convolve(dry, h[300:] / h[300])[:length]
        expected *= np.sqrt(np.sum(dry**2) / np.sum(expected**2))  # the energy is kept
        np.testing.assert_allclose(wet[row, :length], expected, atol=2e-5)
        assert not wet[row, length:].any()


def test_some_utterances_only() -> None:
    waveforms, lengths = torch.randn(60, 400, generator=torch.Generator().manual_seed(0)), torch.full((60,), 400)
    wet, _ = Reverb(probability=0.3)(waveforms, lengths, torch.arange(60))
    assert 8 <= sum(not torch.equal(a, b) for a, b in zip(wet, waveforms, strict=True)) <= 30
    silent, _ = Reverb(probability=1)(torch.zeros(2, 400), lengths[:2], torch.arange(2))
    assert not silent.any()


def test_contract() -> None:
    check_augment(Reverb(highest_rt60=0.3))


def test_errors(tmp_path: Path) -> None:
    for options in ({"lowest_rt60": 0.0}, {"lowest_drr_db": 20}, {"probability": 2}):
        with pytest.raises(ConfigError, match=rf"augment\.reverb.*{next(iter(options))}"):
            Reverb(**options)
    soundfile.write(tmp_path / "silent.wav", np.stack([np.zeros(100), np.ones(100)], 1), 16000)  # in its first channel
    with pytest.raises(AsrError, match=r"augment\.reverb\.path.*silent\.wav: is silent"):
        Reverb(str(tmp_path))
