"""What a recording goes through: gain, telephone, codecs."""

import io

import numpy as np
import pytest
import soundfile
import torch

from asr.augment import Codec, Telephone, Volume
from asr.augment.codec import decode, encode
from asr.augment.telephone import mu_law
from asr.errors import ConfigError
from asr.testing import check_augment


def babble(length: int, rate: int = 16000) -> np.ndarray:
    """Bursts of noise below 3 kHz, as loud as speech."""
    random = np.random.default_rng(0)
    spectrum = np.fft.rfft(random.standard_normal(length))
    spectrum[np.fft.rfftfreq(length, 1 / rate) > 3000] = 0
    noise = np.fft.irfft(spectrum, length) * (np.sin(np.arange(length) * 20 / rate) > 0)
    return (0.3 * noise / np.abs(noise).max()).astype(np.float32)


def lag(before: np.ndarray, after: np.ndarray) -> int:
    """Samples that `after` is late."""
    size = 2 * len(before)
    correlation = np.fft.irfft(np.fft.rfft(after, size) * np.fft.rfft(before, size).conj())
    return (int(correlation.argmax()) + len(before)) % size - len(before)


def test_gains() -> None:
    waveforms, lengths = torch.full((300, 10), 0.5), torch.full((300,), 10)
    louder, same = Volume(lowest_db=-6, highest_db=12, probability=0.8)(waveforms, lengths, torch.arange(300))
    assert torch.equal(same, lengths)
    gains = 20 * torch.log10(louder[:, 0] / 0.5)
    assert -6.01 < gains.min() < -5 and 11 < gains.max() < 12.01
    assert 200 < (gains != 0).sum() < 270
    assert torch.equal(louder, louder[:, :1].expand(-1, 10))
    assert louder.max() > 1.5
    clipped, _ = Volume(lowest_db=-6, highest_db=12, clip=True, probability=0.8)(waveforms, lengths, torch.arange(300))
    assert torch.equal(clipped, louder.clamp(max=1))


def test_mu_law_is_libsndfiles() -> None:
    pcm = np.arange(-32768, 32768, 4).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, pcm, 8000, format="WAV", subtype="ULAW")
    file.seek(0)
    expected, _ = soundfile.read(file, dtype="int16")
    found = mu_law(torch.from_numpy(pcm / 32768.0)) * 32768
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("rate", [8000, 16000, 24000])
def test_the_telephones_band(rate: int) -> None:
    def level(hz: float) -> float:
        """Decibels that a tone loses, away from the ends."""
        tone = 0.5 * torch.sin(2 * torch.pi * hz * torch.arange(rate) / rate)
        heard, _ = Telephone(rate, probability=1)(tone[None], torch.tensor([rate]), torch.tensor([1]))
        inner = slice(rate // 8, -rate // 8)
        return float(20 * torch.log10(heard[0, inner].std() / tone[inner].std()))

    assert all(abs(level(hz)) < 0.5 for hz in (400, 1000, 3200))
    assert level(100) < -35 and level(3700) < -35
    assert rate == 8000 or level(6000) < -35


def test_the_telephone_has_no_delay() -> None:
    speech = babble(20000)
    heard, lengths = Telephone(probability=1)(torch.from_numpy(speech)[None], torch.tensor([20000]), torch.tensor([1]))
    assert heard.shape == (1, 20000) and lengths.tolist() == [20000]
    assert lag(speech, heard[0].numpy()) == 0
    assert 0.9 < np.corrcoef(speech, heard[0])[0, 1] < 0.9999


@pytest.mark.parametrize(("codec", "rates"), [("opus", (8, 16, 64)), ("mp3", (8, 16, 24, 64, 160))])
def test_codecs_keep_length_and_time(codec: str, rates: tuple[int, ...]) -> None:
    speech = babble(24000)
    errors = []
    for kbps in rates:
        file = encode(speech, 16000, codec, kbps)
        assert len(file) * 8 / 1.5 / 1000 == pytest.approx(kbps, rel=0.5 if kbps < 16 else 0.25)
        heard = decode(file, 24000)
        assert heard.shape == (24000,) and abs(lag(speech, heard)) <= 1
        errors.append(np.sum((heard - speech) ** 2) / np.sum(speech**2))
    assert errors[0] > 2 * errors[-1] and errors[-1] < 0.1


@pytest.mark.parametrize("codec", ["opus", "mp3"])
@pytest.mark.parametrize("length", [1, 700, 4001])
def test_codecs_take_any_length(codec: str, length: int) -> None:
    speech = babble(24000)[1000 : 1000 + length]
    for kbps in (6, 320):
        assert decode(encode(speech, 16000, codec, kbps), length).shape == (length,)


def test_codecs_of_a_batch() -> None:
    lengths = torch.tensor([3000, 1200, 2000, 3000])
    waveforms = torch.from_numpy(babble(12000)).view(4, 3000).clone()
    for row, length in enumerate(lengths):
        waveforms[row, length:] = 0
    codec = Codec(["mp3"], lowest_kbps=32, highest_kbps=32, probability=0.5)
    heard, same = codec(waveforms, lengths, torch.tensor([3, 4, 5, 6]))
    assert torch.equal(same, lengths)
    changed = [row for row in range(4) if not torch.equal(heard[row], waveforms[row])]
    assert 0 < len(changed) < 4
    for row in changed:
        length = int(lengths[row])
        expected = decode(encode(waveforms[row, :length].numpy(), 16000, "mp3", 32), length)
        np.testing.assert_array_equal(heard[row, :length], expected)
        assert not heard[row, length:].any()


def test_contracts() -> None:
    check_augment(Volume())
    check_augment(Telephone(probability=0.5))
    check_augment(Codec(probability=0.2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Volume(lowest_db=20), r"augment\.volume: lowest_db=20"),
        (lambda: Telephone(sample_rate=22050), r"augment\.telephone\.sample_rate=22050: must be a multiple"),
        (lambda: Telephone(high_hz=200), r"augment\.telephone: low_hz"),
        (lambda: Codec(["vorbis"]), r"augment\.codec\.codecs=\['vorbis'\].*opus, mp3"),
        (lambda: Codec(sample_rate=22050), r"augment\.codec\.codecs: opus has 8000.*22050"),
        (lambda: Codec(lowest_kbps=100), r"augment\.codec: lowest_kbps"),
    ],
)
def test_config_errors(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_opus_knows_its_lowest_rates() -> None:
    speech = np.random.default_rng(0).normal(0, 0.1, 48000).astype(np.float32)
    sizes = [len(encode(speech, 16000, "opus", kbps)) for kbps in (6, 8, 10)]
    assert sizes == sorted(set(sizes))
