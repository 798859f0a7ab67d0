import io
import os
import struct
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from asr.data import audio
from asr.data.audio import array_blocks, audio_duration, read_audio, read_blocks, resample, resample_blocks
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


# --- in blocks


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_resampling_in_blocks(rate):
    draw = np.random.default_rng(rate)
    samples = draw.uniform(-0.5, 0.5, 3 * rate + 17).astype(np.float32)
    for sizes in ([len(samples)], [rate] * 4, draw.integers(1, rate // 2, 100), [1] * 50 + [rate] * 3):
        edges = np.cumsum(sizes)
        blocks = list(resample_blocks(iter(np.split(samples, edges[edges < len(samples)])), rate, 16000))
        expected = resample(samples, rate, 16000)
        found = np.concatenate(blocks)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_long_file_comes_in_blocks(tmp_path, noise, rate, monkeypatch):
    samples = noise(tmp_path / "a.wav", seconds=7.3, rate=rate, channels=2, subtype="FLOAT").mean(1)
    monkeypatch.setattr(audio, "BLOCK", 2.0)
    blocks = list(read_blocks(tmp_path / "a.wav", 16000))
    assert len(blocks) == 4 and max(map(len, blocks)) <= 2 * 16000 + 100
    expected = samples if rate == 16000 else resample(samples, rate, 16000)
    np.testing.assert_allclose(np.concatenate(blocks), expected, atol=1e-6)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", 16000), expected, atol=1e-6)
    segment = np.concatenate(list(read_blocks(tmp_path / "a.wav", rate, 1.5, 5.0, 1)))
    np.testing.assert_array_equal(
        segment, read_audio(tmp_path / "a.wav", rate, 0.0, None, 1)[rate * 3 // 2 :][: 5 * rate]
    )


def test_blocks_of_many_channels_are_short(tmp_path, noise, monkeypatch):
    noise(tmp_path / "a.wav", seconds=1.0, channels=8)
    monkeypatch.setattr(audio, "BLOCK_VALUES", 8 * 1000)
    assert [len(block) for block in read_blocks(tmp_path / "a.wav", 16000)] == [1000] * 16


def flac_of_length(path, frames: int) -> None:
    """Rewrite the number of samples in a FLAC file's header: 36 bits, the last ones before the checksum."""
    content = bytearray(path.read_bytes())
    content[21:26] = bytes([content[21] & 0xF0 | frames >> 32]) + struct.pack(">I", frames & 0xFFFFFFFF)
    path.write_bytes(content)


def test_headers_that_promise_hours_take_no_memory(tmp_path, noise):
    noise(tmp_path / "a.flac")
    flac_of_length(tmp_path / "a.flac", 10 * 3600 * 16000)
    soundfile.write(tmp_path / "b.wav", np.zeros(1), 16000)
    content = bytearray((tmp_path / "b.wav").read_bytes()[:44])
    content[4:8], content[40:44] = struct.pack("<I", 36 + 10 * 3600 * 32000), struct.pack("<I", 10 * 3600 * 32000)
    (tmp_path / "b.wav").write_bytes(content)
    tracemalloc.start()
    for name in ("a.flac", "b.wav"):
        with pytest.raises(AudioError, match=name):
            read_audio(tmp_path / name, 16000)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@pytest.mark.parametrize("rate", [1, 999, 2_000_001, 2**31 - 1])
def test_sample_rates_that_cannot_be(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), rate)
    with pytest.raises(AudioError, match=rf"a\.wav: its header is damaged: it promises a sample rate of {rate} Hz"):
        read_audio(tmp_path / "a.wav", 16000)


@pytest.mark.parametrize("rate", [11127, 44101, 191_999, 1_000_000])
def test_odd_sample_rates_need_little_memory(tmp_path, rate):
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    soundfile.write(tmp_path / "a.wav", 0.5 * tone, rate, subtype="FLOAT")
    found = read_audio(tmp_path / "a.wav", 16000)
    assert len(found) == pytest.approx(16000, abs=2)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(found[1000:15000] - expected[1000:15000]).max() < 0.02
    assert audio._resampler(rate, 16000)._filters.size < 2e6


# --- other containers, standard input, arrays

MP4 = b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(1000)
FAKE = """#!{python}
import shutil, sys
arguments = sys.argv[1:]
source = arguments[arguments.index("-i") + 1]
assert source.startswith("file:/") and "-nostdin" in arguments
assert arguments[arguments.index("-protocol_whitelist") + 1] == "file"
with open(source.removeprefix("file:"), "rb") as file:
    content = file.read()
if b"broken" in content:
    sys.exit("moov atom not found")
if b"partial" in content:
    print("stream 0, offset 0x2c: partial file", file=sys.stderr)
shutil.copy({wav!r}, arguments[-1])
"""


@pytest.fixture
def ffmpeg(tmp_path, noise, monkeypatch):
    """An ffmpeg on the PATH that decodes every file to the same noise."""
    samples = noise(tmp_path / "decoded.wav", rate=8000)[:, 0]
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ffmpeg"
    program.write_text(FAKE.format(python=sys.executable, wav=str(tmp_path / "decoded.wav")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return samples


def test_other_containers_by_ffmpeg(tmp_path, ffmpeg):
    for name, head in (("a=b (1).m4a", MP4), ("-b.webm", b"\x1a\x45\xdf\xa3" + bytes(99)), ("mp4.wav", MP4)):
        (tmp_path / name).write_bytes(head)
        np.testing.assert_allclose(read_audio(tmp_path / name, 8000), ffmpeg, atol=2**-15)
        assert audio_duration(tmp_path / name) == 0.5
    assert {path.name for path in tmp_path.iterdir()} == {"a=b (1).m4a", "-b.webm", "mp4.wav", "bin", "decoded.wav"}


def test_a_stream_that_does_not_know_its_length(tmp_path, noise, ffmpeg):
    noise(tmp_path / "a.flac")
    flac_of_length(tmp_path / "a.flac", 0)
    np.testing.assert_allclose(read_audio(tmp_path / "a.flac", 8000), ffmpeg, atol=2**-15)


def test_what_ffmpeg_cannot_decode(tmp_path, ffmpeg):
    (tmp_path / "a.m4a").write_bytes(MP4 + b"broken")
    with pytest.raises(AudioError, match=r"a\.m4a: ffmpeg cannot decode it \(moov atom not found\)"):
        read_audio(tmp_path / "a.m4a", 8000)
    (tmp_path / "a.m4a").write_bytes(MP4 + b"partial")
    with pytest.raises(AudioError, match=r"a\.m4a: cut short, as ffmpeg says"):
        read_audio(tmp_path / "a.m4a", 8000)


def test_ffmpeg_is_not_asked_about_what_is_no_container(tmp_path, ffmpeg):
    for content in (b"#EXTM3U\nhttp://localhost/a.ts\n", b"ffconcat version 1.0\nfile /etc/passwd\n", b"no audio"):
        (tmp_path / "a.m4a").write_bytes(content)
        with pytest.raises(AudioError, match=r"a\.m4a: cannot be read as audio"):
            read_audio(tmp_path / "a.m4a", 8000)


def test_without_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a.m4a").write_bytes(MP4)
    with pytest.raises(AudioError, match=r"a\.m4a: is MP4, which needs ffmpeg, and there is none on the PATH"):
        read_audio(tmp_path / "a.m4a", 8000)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.sph"])
def test_standard_input(tmp_path, noise, monkeypatch, name):
    noise(tmp_path / name, **({"format": "NIST", "subtype": "PCM_16"} if name == "a.sph" else {}))
    pipe = io.BytesIO((tmp_path / name).read_bytes())
    pipe.seek = pipe.tell = None  # it cannot go back
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pipe))
    np.testing.assert_array_equal(read_audio("-", 16000), read_audio(tmp_path / name, 16000))


def test_standard_input_that_is_no_audio(monkeypatch):
    for content, message in ((b"", "nothing came"), (b"no audio", "cannot be read as audio"), (MP4, "needs ffmpeg")):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        monkeypatch.setenv("PATH", "")
        with pytest.raises(AudioError, match=f"standard input: .*{message}"):
            read_audio("-", 16000)


def test_arrays():
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (48000, 2))

    def whole(*arguments):
        [block] = array_blocks(*arguments)
        assert block.dtype == np.float32
        return block

    np.testing.assert_allclose(whole(samples, 16000, 16000), samples.mean(1), atol=1e-7)
    np.testing.assert_allclose(whole(samples, 16000, 16000, 1), samples[:, 1], atol=1e-7)
    expected = resample(samples[:, 0].astype(np.float32), 48000, 16000)
    np.testing.assert_array_equal(whole(samples[:, 0], 48000, 16000), expected)
    for dtype in (np.int16, np.int32):
        scaled = (samples * 2.0 ** (8 * np.dtype(dtype).itemsize - 1)).astype(dtype)
        np.testing.assert_allclose(whole(scaled, 16000, 16000, 0), samples[:, 0], atol=2**-14)
    np.testing.assert_array_equal(whole(samples[:, 0], 48000.0, 16000), expected)
    assert [len(block) for block in array_blocks(np.zeros(130 * 16000), 16000, 16000)] == [960000, 960000, 160000]


@pytest.mark.parametrize(
    ("samples", "rate", "channel", "message"),
    [
        (np.zeros(0), 16000, None, r"array: has shape \(0,\)"),
        (np.zeros((2, 2, 2)), 16000, None, "array: has shape"),
        (np.zeros(9, np.uint8), 16000, None, "signed integers"),
        (np.array(["a"]), 16000, None, "array: has shape"),
        (np.zeros(9), 0, None, "sample rate of 0 Hz"),
        (np.zeros(9), 11025.5, None, r"sample rate of 11025\.5 Hz"),
        (np.zeros(9), 16000, 1, "no channel 1, only 1"),
        (np.full(9, np.nan), 16000, None, "not numbers"),
        (np.full(9, 1e19), 16000, None, "beyond any sound"),
        (np.zeros((2, 9)), 16000, None, "Transpose it"),
    ],
)
def test_arrays_that_are_no_audio(samples, rate, channel, message):
    with pytest.raises(AudioError, match=message):
        list(array_blocks(samples, rate, 16000, channel))


# --- damage


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.au", "a.aiff", "a.sph", "a.ogg", "a.mp3", "a.w64"])
def test_mutated_headers(tmp_path, noise, name):
    """128 files of each format with damaged heads: each is read or refused, in bounded memory."""
    noise(
        tmp_path / name, rate=22050, channels=2, **({"format": "NIST", "subtype": "PCM_16"} if name == "a.sph" else {})
    )
    original = (tmp_path / name).read_bytes()
    draw = np.random.default_rng(len(name) + ord(name[2]))
    outcomes = set()
    for _ in range(128):
        content = bytearray(original)
        for _ in range(draw.integers(1, 6)):
            at, size = int(draw.integers(0, 120)), int(draw.choice([1, 2, 4]))
            content[at : at + size] = draw.choice([bytes(size), b"\xff" * size, draw.bytes(size)])
        (tmp_path / name).write_bytes(content[: draw.integers(1, len(content))] if draw.random() < 0.2 else content)
        try:
            samples = read_audio(tmp_path / name, 16000)
            assert samples.dtype == np.float32 and samples.ndim == 1 and np.isfinite(samples).all()
            outcomes.add("read")
        except AudioError as error:
            assert name in str(error)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
