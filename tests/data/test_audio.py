import os

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from asr.data.audio import audio_duration, read_audio, resample
from asr.errors import AudioError


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_resampling_equals_torchaudio(tmp_path, noise, rate):
    samples = noise(tmp_path / "a.wav", rate=rate, subtype="FLOAT")[:, 0]
    expected = torchaudio.transforms.Resample(rate, 16000)(torch.from_numpy(samples)).numpy()
    read = read_audio(tmp_path / "a.wav", 16000)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, expected, atol=2e-5)  # its filters are made in float32
    np.testing.assert_array_equal(read, resample(samples, rate, 16000))
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", rate), samples)


def test_channels_are_averaged_or_chosen(tmp_path, noise):
    samples = noise(tmp_path / "a.wav", channels=3, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", 16000), samples.mean(1), atol=1e-7)
    for channel in range(3):
        np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", 16000, channel=channel), samples[:, channel])
    for missing in (3, -1):
        with pytest.raises(AudioError, match=rf"a\.wav: has no channel {missing}, only 3"):
            read_audio(tmp_path / "a.wav", 16000, channel=missing)


def test_segment_reads_only_the_segment(tmp_path, noise, monkeypatch):
    samples = noise(tmp_path / "long.flac", seconds=20)[:, 0]
    read, real = [], soundfile.SoundFile.read

    def counted(self, *args, **options):
        read.append(real(self, *args, **options))
        return read[-1]

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    segment = read_audio(tmp_path / "long.flac", 16000, offset=12.5, duration=0.25)
    np.testing.assert_allclose(segment, samples[200000:204000], atol=2**-15)
    assert sum(len(block) for block in read) == 4000
    tail = read_audio(tmp_path / "long.flac", 16000, offset=19.9)
    np.testing.assert_allclose(tail, samples[-1600:], atol=2**-15)


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.wav", {"subtype": "PCM_16"}, 2**-15),
        ("a.wav", {"subtype": "PCM_24"}, 2**-23),
        ("a.wav", {"subtype": "DOUBLE"}, 1e-7),
        ("a.wav", {"subtype": "ULAW"}, 0.02),
        ("a.wav", {"subtype": "ALAW"}, 0.02),
        ("a.sph", {"format": "NIST", "subtype": "PCM_16"}, 2**-15),
        ("a.flac", {"subtype": "PCM_24"}, 2**-23),
        ("a.au", {}, 2**-15),
    ],
)
def test_formats(tmp_path, noise, name, options, tolerance):
    samples = noise(tmp_path / name, **options)[:, 0]
    np.testing.assert_allclose(read_audio(tmp_path / name, 16000), samples, atol=tolerance)
    assert audio_duration(tmp_path / name) == 0.5


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.ogg", {"subtype": "VORBIS"}), ("a.opus", {"format": "OGG", "subtype": "OPUS"}), ("a.mp3", {})],
)
def test_lossy_formats(tmp_path, name, options):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    soundfile.write(tmp_path / name, tone, 16000, **options)
    read = read_audio(tmp_path / name, 16000)
    assert abs(len(read) - 16000) <= 1200  # an MP3 has whole frames
    spectrum = np.abs(np.fft.rfft(read[2000:14000]))
    assert spectrum.argmax() == 330  # 440 Hz in steps of 4/3 Hz
    assert np.abs(read[2000:14000]).max() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", {}),
        ("a.au", {}),
        ("a.aiff", {}),
        ("a.sph", {"format": "NIST", "subtype": "PCM_16"}),
        ("a.flac", {}),
        ("a.ogg", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.mp3", {}),
    ],
)
def test_cut_files_are_refused(tmp_path, noise, name, options):
    noise(tmp_path / name, seconds=2, **options)
    os.truncate(tmp_path / name, os.path.getsize(tmp_path / name) // 2)
    for duration in (None, 2.0):
        with pytest.raises(AudioError, match=name):
            read_audio(tmp_path / name, 16000, duration=duration)


def test_segment_before_the_cut_is_read(tmp_path, noise):
    samples = noise(tmp_path / "a.wav", seconds=2, subtype="FLOAT")[:, 0]
    os.truncate(tmp_path / "a.wav", os.path.getsize(tmp_path / "a.wav") // 2)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", 16000, 0.25, 0.5), samples[4000:12000])


def test_wav_from_a_pipe_is_read(tmp_path, noise):
    samples = noise(tmp_path / "a.wav", subtype="PCM_16")[:, 0]
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"  # the writer could not go back to fill in the length
    (tmp_path / "a.wav").write_bytes(content)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", 16000), samples, atol=2**-15)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers(tmp_path, value):
    samples = np.zeros((1600, 2), np.float32)
    samples[800, 0] = value
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav: has samples that are not numbers"):
        read_audio(tmp_path / "a.wav", 16000)
    assert not read_audio(tmp_path / "a.wav", 16000, channel=1).any()  # the other channel is whole
    assert not read_audio(tmp_path / "a.wav", 16000, offset=0.06).any()


@pytest.mark.parametrize("read", [audio_duration, lambda path: read_audio(path, 16000)])
def test_what_is_not_audio(tmp_path, read):
    (tmp_path / "text.wav").write_text("this is no audio\n" * 100)
    (tmp_path / "empty.wav").touch()
    cases = {"text.wav": "cannot be read as audio", "empty.wav": "is empty", "none.wav": "no such audio", "": "folder"}
    for name, message in cases.items():
        with pytest.raises(AudioError, match=message) as caught:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_segments_that_hold_nothing(tmp_path, noise):
    noise(tmp_path / "a.wav")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    for path, offset, duration in [("a.wav", 0.5, None), ("a.wav", 3.0, 1.0), ("a.wav", 0, 0.0), ("none.wav", 0, None)]:
        with pytest.raises(AudioError, match=f"{path}: no audio at"):
            read_audio(tmp_path / path, 16000, offset, duration)


def test_duration_may_be_rounded_but_not_wrong(tmp_path, noise):
    samples = noise(tmp_path / "a.wav", seconds=1.23456, subtype="FLOAT")
    assert len(read_audio(tmp_path / "a.wav", 16000, duration=1.235)) == len(samples)  # rounded up past the end
    assert len(read_audio(tmp_path / "a.wav", 16000, duration=1.23)) == 19680
    with pytest.raises(AudioError, match=r"cut short: 1\.235 s of the 2\.000 s"):
        read_audio(tmp_path / "a.wav", 16000, duration=2.0)


def test_unicode_path(tmp_path, noise):
    samples = noise(tmp_path / "语音 a=b, (1).wav", subtype="FLOAT")[:, 0]
    np.testing.assert_array_equal(read_audio(tmp_path / "语音 a=b, (1).wav", 16000), samples)
