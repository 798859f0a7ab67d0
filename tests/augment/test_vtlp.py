import numpy as np
import pytest
import torch

from asr.augment import Vtlp
from asr.augment.seeds import utterance_seeds
from asr.errors import ConfigError
from asr.featurizers import LogMel
from asr.testing import check_augment

FACTORS = [0.85, 0.9, 1.0, 1.1, 1.2]


def warped_hz(hz: float, factor: float, boundary: float = 4800.0, top: float = 8000.0) -> float:
    """The paper's formula, a frequency at a time."""
    knee = boundary * min(factor, 1) / factor
    if hz <= knee:
        return hz * factor
    return top - (top - knee * factor) / (top - knee) * (top - hz)


def fixed(factor: float, **options) -> Vtlp:
    return Vtlp(**({"bands": 80, "lowest": factor, "highest": factor} | options))


@pytest.mark.parametrize("factor", FACTORS)
def test_each_band_reads_where_the_paper_says(factor: float) -> None:
    mels = np.linspace(2595 * np.log10(1 + 20 / 700), 2595 * np.log10(1 + 8000 / 700), 82)[1:-1]
    centres = 700 * (10 ** (mels / 2595) - 1)
    features = torch.from_numpy(mels).float().expand(1, 3, 80)  # each band's value is its place on the mel scale
    warped, _ = fixed(factor)(features, torch.tensor([3]), torch.tensor([1]))
    expected = [2595 * np.log10(1 + warped_hz(hz, factor) / 700) for hz in centres]
    np.testing.assert_allclose(warped[0, 1], np.clip(expected, mels[0], mels[-1]), rtol=1e-5)
    assert factor != 1.0 or torch.equal(warped, features)


@pytest.mark.parametrize("factor", FACTORS)
def test_it_is_what_moved_filters_give(factor: float) -> None:
    """On noise with three formants, the paper's filter bank, its edges moved, against the interpolation."""
    random = np.random.default_rng(0)
    frequencies = np.fft.rfftfreq(16000, 1 / 16000)
    shape = sum(1 / (1 + ((frequencies - f) / 150) ** 2) for f in (600, 1500, 3500)) + 0.01
    waveform = np.fft.irfft(np.fft.rfft(random.standard_normal(16000)) * shape)
    log_mel = LogMel()
    spectrum = log_mel.spectrum(torch.from_numpy(waveform).float()[None])[0].numpy()
    mels = np.linspace(2595 * np.log10(1 + 20 / 700), 2595 * np.log10(1 + 8000 / 700), 82)
    edges = [warped_hz(700 * (10 ** (mel / 2595) - 1), factor) for mel in mels]
    bins = np.arange(257) * 8000 / 256
    filters = np.stack([np.interp(bins, edges[k : k + 3], [0, 1, 0]) for k in range(80)], 1)
    expected = np.log(spectrum @ filters + 1e-6).mean(0)
    plain, _ = log_mel(torch.from_numpy(waveform).float()[None], torch.tensor([16000]))
    warped, _ = fixed(factor)(plain, torch.tensor([plain.shape[1]]), torch.tensor([1]))
    difference, effect = warped[0].mean(0).numpy() - expected, plain[0].mean(0).numpy() - expected
    assert np.sqrt(np.mean(difference**2)) < (0.3 * np.sqrt(np.mean(effect**2)) if factor != 1 else 1e-4)


def test_normalised_features_lack_a_constant_only() -> None:
    random = torch.Generator().manual_seed(0)
    energies = torch.randn(1, 50, 80, generator=random).cumsum(2)
    mean, one = energies.mean(1, keepdim=True), torch.tensor([50])
    vtlp = fixed(1.1)
    difference = vtlp(energies - mean, one, one)[0] - (vtlp(energies, one, one)[0] - mean)
    assert difference.std(1).max() < 1e-5


def test_draws() -> None:
    lengths, seeds = torch.full((500,), 2), utterance_seeds(0, 0, torch.arange(500))
    features = torch.arange(80.0).expand(500, 2, 80)
    warped, same = Vtlp(80, lowest=0.8, highest=1.2, probability=0.7)(features, lengths, seeds)
    assert torch.equal(same, lengths)
    place = warped[:, 0, 40]  # grows with the factor
    untouched = float((place == 40).float().mean())
    assert 0.24 < untouched < 0.36
    drawn = place[place != 40]
    assert 0.42 < float((drawn > 40).float().mean()) < 0.58 and len(drawn.unique()) > 300


def test_contract() -> None:
    check_augment(Vtlp(40, probability=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": 0}, "log_mel"),
        ({"coefficients": 80}, "log_mel"),
        ({"lowest": 1.2}, "ascend"),
        ({"probability": 1.5}, "probability"),
        ({"boundary_hz": 8000}, "boundary_hz"),
    ],
)
def test_config_errors(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"augment\.vtlp.*{message}"):
        Vtlp(**({"bands": 80} | options))


def test_other_features_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"bands=80, but there are 13 features.*log_mel"):
        Vtlp(80)(torch.zeros(1, 5, 13), torch.tensor([5]), torch.tensor([0]))
