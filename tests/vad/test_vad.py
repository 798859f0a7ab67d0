from __future__ import annotations

import numpy as np
import pytest

from asr.errors import ConfigError
from asr.plugins import config_names, instantiate, named_config
from asr.testing import check_vad
from asr.vad import Energy, Everything

RATE = 16000
NEEDS = {"silero": "silero_vad", "webrtc": "webrtcvad"}


def noise(seconds: float, db: float, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    return (10 ** (db / 20) * samples).astype(np.float32)


def speech_like(seconds: float, db: float, seed: int = 0) -> np.ndarray:
    """A buzz of changing pitch and loudness."""
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = 120 + 30 * np.sin(2 * np.pi * 1.3 * time + seed)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    buzz = sum(np.sin(k * phase) / k for k in range(1, 25)) * (1 + 0.5 * np.sin(2 * np.pi * 4 * time))
    return (10 ** (db / 20) * buzz / buzz.std()).astype(np.float32)


def frames(vad, *blocks: np.ndarray) -> np.ndarray:
    return np.concatenate(list(vad(iter(blocks), RATE)))


@pytest.mark.parametrize("name", sorted(config_names("vad")))
def test_contract(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    vad = instantiate(named_config("vad", name), "vad")
    check_vad(vad)
    assert not frames(vad, np.zeros(3 * RATE, np.float32)).any() or isinstance(vad, Everything)


def test_energy_is_the_formula_of_its_docstring() -> None:
    samples = np.concatenate([noise(6.0, -60), noise(2.0, -30, 1), noise(9.5, -50, 2)])
    variances = [0.0] * 4 + [np.var(samples[k * 80 : (k + 1) * 80].astype(np.float64)) for k in range(3500)] + [0.0] * 5
    energies = 10 * np.log10([np.mean(variances[2 * t : 2 * t + 10]) for t in range(1750)])
    for share, least, most in ((0.4, 4.0, 15.0), (0.5, 0.0, 99.0), (0.1, 6.0, 6.0)):
        expected = []
        for first in range(0, 1750, 500):
            around = energies[max(0, first - 500) : first + 1000]
            floor, peak = np.percentile(around, 10), np.percentile(around, 95)
            threshold = floor + max(least, min(most, share * (peak - floor)))
            expected += list(energies[first : first + 500] > threshold)
        assert 0 < np.sum(expected) < 1750
        np.testing.assert_array_equal(frames(Energy(share, least, most), samples), expected)
        halves = frames(Energy(share, least, most), samples[: 10 * RATE], samples[10 * RATE :])
        assert np.mean(halves == expected) > 0.99  # the first half does not know the second


@pytest.mark.parametrize("db", [-80, -60, -40])
def test_energy_finds_speech_above_the_noise(db: float) -> None:
    background = noise(10.0, db)
    background[3 * RATE : 5 * RATE] += speech_like(2.0, db + 20)
    background += 0.3  # a constant offset is no sound
    found = frames(Energy(), background)
    assert found[305:495].mean() > 0.95
    assert not found[:295].any() and not found[505:].any()


def test_energy_in_steady_noise_hears_nothing() -> None:
    for db in (-80, -20):
        assert not frames(Energy(), noise(30.0, db)).any()


def test_energy_does_not_take_digital_silence_for_the_noise() -> None:
    talk = np.concatenate([noise(5.0, -50), noise(5.0, -50) + speech_like(5.0, -20)])
    found = frames(Energy(), np.concatenate([np.zeros(30 * RATE, np.float32), talk]))
    assert not found[: 3000 + 490].any() and found[3000 + 505 :].mean() > 0.95


def test_energy_remembers_the_block_before() -> None:
    loud = noise(10.0, -60) + np.pad(speech_like(3.0, -20), (7 * RATE, 0))
    assert frames(Energy(), loud, speech_like(5.0, -20))[1000:].mean() > 0.9
    assert frames(Energy(), speech_like(5.0, -20)).mean() < 0.9
    found = frames(Energy(), loud, noise(5.0, -60, 3))
    assert not found[1005:].any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("energy", {"share": 1.0}),
        ("energy", {"least_db": -1.0}),
        ("energy", {"most_db": 1.0}),
        ("webrtc", {"aggressiveness": 4}),
    ],
)
def test_options_out_of_range(name: str, options: dict) -> None:
    with pytest.raises(ConfigError, match="vad"):
        instantiate(named_config("vad", name) | options, "vad")


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_a_package_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from asr.vad import silero

    silero._network.cache_clear()
    monkeypatch.setitem(sys.modules, NEEDS[name], None)
    with pytest.raises(ConfigError, match=f"vad={name} needs the package.*pip install"):
        instantiate(named_config("vad", name), "vad")


@pytest.mark.parametrize("name", ["energy", *sorted(NEEDS)])
def test_detectors_find_real_speech(name: str, an4_root) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    from asr.data.audio import read_audio

    paths = sorted(an4_root.rglob("*.flac"))[:200:20] or sorted(an4_root.rglob("*.sph"))[:200:20]
    vad = instantiate(named_config("vad", name), "vad")
    for path in paths:
        samples = read_audio(path, RATE)
        silence = np.std(samples[:1600]) * np.random.default_rng(0).standard_normal(5 * RATE).astype(np.float32)
        found = np.concatenate(list(vad(iter([np.concatenate([silence, samples, silence])]), RATE)))
        inside = round(5 / (vad.frame_ms / 1000)), round((5 + len(samples) / RATE) / (vad.frame_ms / 1000))
        assert found[inside[0] : inside[1]].mean() > 0.3
        assert found[: inside[0] - 20].mean() < 0.1 and found[inside[1] + 20 :].mean() < 0.1
