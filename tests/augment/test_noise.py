from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asr.augment import Noise
from asr.augment.seeds import utterance_seeds
from asr.errors import AsrError, ConfigError
from asr.testing import check_augment


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A long noise, a short one in a folder below, and a file that is no audio."""
    random = np.random.default_rng(0)
    (tmp_path / "short").mkdir()
    soundfile.write(tmp_path / "long.flac", 0.1 * random.standard_normal(64000), 16000)
    soundfile.write(tmp_path / "short" / "tone.wav", 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2000) / 8000), 8000)
    (tmp_path / "README.txt").write_text("noise")
    return tmp_path


def speech(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms of very different levels, with silence in the padding."""
    waveforms = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        random = torch.Generator().manual_seed(row)
        waveforms[row, :length] = 10.0 ** -(row % 4) * torch.randn(length, generator=random)
    return waveforms, torch.tensor(lengths)


def ratio(signal: torch.Tensor, noisy: torch.Tensor) -> float:
    return float(10 * torch.log10(signal.double().square().sum() / (noisy.double() - signal).square().sum()))


@pytest.mark.parametrize("recorded", [False, True])
def test_the_ratio_is_the_one_asked_for(recorded: bool, folder: Path) -> None:
    path = str(folder) if recorded else None
    waveforms, lengths = speech(1000, 16000, 7001, 30000)
    exact = Noise(path, lowest_snr_db=7, highest_snr_db=7, probability=1)
    noisy, same = exact(waveforms, lengths, torch.arange(4))
    assert torch.equal(same, lengths)
    for row, length in enumerate(lengths.tolist()):
        assert ratio(waveforms[row], noisy[row]) == pytest.approx(7, abs=0.01)
        assert not noisy[row, length:].any()
    waveforms, lengths = speech(*[1000] * 100)
    noisy, _ = Noise(path, lowest_snr_db=5, highest_snr_db=25, probability=0.6)(waveforms, lengths, torch.arange(100))
    changed = [row for row in range(100) if not torch.equal(noisy[row], waveforms[row])]
    ratios = [ratio(waveforms[row], noisy[row]) for row in changed]
    assert 45 <= len(changed) <= 75
    assert 4.9 < min(ratios) < 8 and 22 < max(ratios) < 25.1


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_coloured_noise_falls_as_it_should(slope: float) -> None:
    waveforms, lengths = speech(*[40000] * 8)
    noise = Noise(lowest_slope=slope, highest_slope=slope, lowest_snr_db=0, highest_snr_db=0, probability=1)
    added = (noise(waveforms, lengths, torch.arange(8))[0] - waveforms) * 10.0 ** (torch.arange(8) % 4)[:, None]
    power = np.abs(np.fft.rfft(added.numpy() * np.hanning(40000))) ** 2
    hz = np.fft.rfftfreq(40000, 1 / 16000)
    octaves = [(hz >= f) & (hz < 2 * f) for f in (62.5, 125, 250, 500, 1000, 2000)]
    levels = [np.log2(power[:, octave].mean()) for octave in octaves]
    assert np.polyfit(range(6), levels, 1)[0] == pytest.approx(-slope, abs=0.1)
    assert power[:, hz < 15].mean() < 0.1 * power[:, octaves[0]].mean()


def test_short_recordings_are_resampled_and_looped(folder: Path) -> None:
    waveforms, lengths = speech(16000)
    noise = Noise(str(folder / "short"), probability=1, lowest_snr_db=0, highest_snr_db=0)
    added = (noise(waveforms, lengths, torch.tensor([3]))[0] - waveforms)[0].numpy()
    assert np.abs(np.fft.rfft(added)).argmax() == 1000  # the tone of 1 kHz, in Hz, in spite of its rate
    np.testing.assert_allclose(added[:4000], added[12000:], atol=1e-5)  # a quarter of a second, four times


def test_segments_are_drawn(folder: Path) -> None:
    waveforms, lengths = speech(*[8000] * 4)
    noise = Noise(str(folder), probability=1, lowest_snr_db=0, highest_snr_db=0)
    noisy, _ = noise(waveforms[:1].expand(4, -1), lengths, utterance_seeds(0, 0, torch.arange(4)))
    assert len({tuple(row[:50].tolist()) for row in noisy}) == 4


def test_silence_stays_finite() -> None:
    silent, _ = Noise(probability=1)(torch.zeros(2, 1000), torch.tensor([1000, 1]), torch.arange(2))
    assert not silent.any()


def test_contract(folder: Path) -> None:
    check_augment(Noise())
    check_augment(Noise(str(folder), probability=0.7))


@pytest.mark.parametrize("content", [None, b"RIFF and no more", b""])
def test_bad_recordings_are_named(content: bytes | None, folder: Path) -> None:
    bad = folder / "zz.wav"
    if content is None:
        soundfile.write(bad, np.zeros(16000), 16000)
    else:
        bad.write_bytes(content)
    with pytest.raises(AsrError, match=r"augment\.noise\.path.*zz\.wav.*(silent|audio|empty)"):
        Noise(str(folder))


def test_folders_that_do_not_serve(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"augment\.noise\.path=.*nowhere: no such folder"):
        Noise(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"augment\.noise\.path=.*no audio"):
        Noise(str(tmp_path))


@pytest.mark.parametrize("options", [{"lowest_snr_db": 30}, {"lowest_slope": 3}, {"probability": -0.1}])
def test_config_errors(options: dict) -> None:
    with pytest.raises(ConfigError, match=rf"augment\.noise.*{next(iter(options))}"):
        Noise(**options)
