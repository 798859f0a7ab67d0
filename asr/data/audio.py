"""Reading audio files: any rate and channel count in, one waveform at the wanted rate out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asr.data.containers import STDIN, container, decode_container, spool_stdin
from asr.data.resampling import Resampler
from asr.data.shards import Member, parse_member, read_member
from asr.errors import AudioError

if TYPE_CHECKING:
    import soundfile

UNREADABLE_AUDIO = "unreadable audio"
"""Why an utterance is left out."""
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".sph", ".aiff", ".aif", ".au", ".w64", ".m4a")
"""What is taken for audio in a folder, in lower case."""
BLOCK = 60.0
"""Seconds that are read at once."""
BLOCK_VALUES = 1 << 24
"""Samples of all channels together that are read at once: 64 MiB."""
LOUDEST = 1e9
"""Full scale is 1, or 32768 in files that hold integers as floats; energies of much more overflow float32."""
NO_SOUND = "not numbers (NaN or infinite), or far beyond any sound"
RATES = (1_000, 1_000_000)
"""Between which sample rates, Hz, a header is believed."""
UNKNOWN = 1 << 62
"""Frames; a FLAC stream whose header does not say how long it is promises more, and libsndfile cannot read it."""


def audio_duration(path: str | Path) -> float:
    """Seconds of audio that the file's header promises.

    Raises:
        AudioError: the file is missing or not audio.
    """
    with open_audio(path) as file:
        return file.frames / file.samplerate


def read_audio(
    path: str | Path,
    sample_rate: int,
    offset: float = 0.0,
    duration: float | None = None,
    channel: int | None = None,
) -> np.ndarray:
    """Read a segment of an audio file, and only that, as mono at `sample_rate`.

    Args:
        path: any format of libsndfile: WAV, FLAC, OGG (Vorbis, Opus), MP3, NIST SPHERE, AIFF, AU; with an ffmpeg on
            the PATH also MP4, WebM and others (`asr.data.containers`); "-" is standard input; or the member of a shard
            (`asr.data.shards`).
        sample_rate: Hz wanted; another rate in the file is resampled (windowed sinc).
        offset: seconds from the start of the file.
        duration: seconds; `None` reads to the end.
        channel: which one to take, from 0; `None` averages all.

    Returns:
        (N,) float32 in -1…1.

    Raises:
        AudioError: missing, not audio, cut short, empty segment, NaN samples, or no such channel.
    """
    blocks = list(read_blocks(path, sample_rate, offset, duration, channel))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def read_blocks(
    path: str | Path,
    sample_rate: int,
    offset: float = 0.0,
    duration: float | None = None,
    channel: int | None = None,
) -> Iterator[np.ndarray]:
    """Read what `read_audio` reads in blocks of a minute or less, so that hours of it need little memory.

    Raises:
        AudioError: as `read_audio`; that a file is cut short may show only after its last block.
    """
    with open_audio(path) as file:
        rate = file.samplerate
        if channel is not None and not 0 <= channel < file.channels:
            raise AudioError(f"{shown(path)}: has no channel {channel}, only {file.channels} (counted from 0).")
        blocks = read_samples(file, shown(path), offset, duration)
        mono = (
            samples.mean(axis=1)
            if channel is None and samples.shape[1] > 1
            else np.ascontiguousarray(samples[:, channel or 0])
            for samples in blocks
        )
        for block in mono if rate == sample_rate else resample_blocks(mono, rate, sample_rate):
            if not _is_sound(block):
                raise AudioError(f"{shown(path)}: has samples that are {NO_SOUND}. Leave the file out.")
            yield block


def read_samples(
    file: soundfile.SoundFile, name: str, offset: float = 0.0, duration: float | None = None, dtype: str = "float32"
) -> Iterator[np.ndarray]:
    """Read a segment of an open audio file as it is, in blocks (frames, channels) of a minute or less.

    Args:
        file: as `open_audio` gives it.
        name: what messages call it.
        offset, duration: as in `read_audio`.
        dtype: of the samples, one of soundfile's.

    Raises:
        AudioError: cut short, empty segment, or a rate that cannot be.
    """
    rate, start = file.samplerate, round(offset * file.samplerate)
    wanted = file.frames - start if duration is None else round(duration * rate)
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"{name}: its header is damaged: it promises a sample rate of {rate} Hz.")
    if start >= file.frames or wanted <= 0:
        raise AudioError(
            f"{name}: no audio at {offset:.3f} s; the file has {file.frames / rate:.3f} s. "
            "Check 'offset' and 'duration' of the manifest, or leave the file out."
        )
    if duration is None and (lost := lost_seconds(file)):
        raise AudioError(
            f"{name}: cut short: {lost:.3f} s that its header promises are missing. "
            "Fetch the file again, or leave it out."
        )

    def blocks() -> Iterator[np.ndarray]:
        done = 0
        for samples in _decode(file, name, start, wanted, dtype):
            done += len(samples)
            yield samples
        # a duration in the manifest is rounded, and MP3 headers promise a frame too many
        if not done or done < wanted - max(0.02 * wanted, 0.1 * rate):
            raise AudioError(
                f"{name}: cut short: {done / rate:.3f} s of the {wanted / rate:.3f} s from {offset:.3f} s "
                "could be read. Fetch the file again, or leave it out."
            )

    return blocks()


def _is_sound(block: np.ndarray) -> bool:
    return bool(np.abs(block).max(initial=0) <= LOUDEST)  # False for NaN


def full_scale(samples: np.ndarray, dimensions: Sequence[int]) -> float:
    """What brings samples to -1…1: 1 for floating-point numbers, for integers one over their type's range.

    Raises:
        AudioError: another type, or another number of dimensions.
    """
    if samples.ndim not in dimensions or samples.dtype.kind not in "fi":
        shapes = " or ".join(("(N,)", "(N, channels)")[d - 1] for d in dimensions)
        raise AudioError(
            f"array: has shape {samples.shape} of {samples.dtype}; it must hold {shapes} floating-point "
            "numbers or signed integers."
        )
    return 1.0 if samples.dtype.kind == "f" else 1.0 / 2 ** (8 * samples.dtype.itemsize - 1)


def array_blocks(samples: np.ndarray, rate: int, sample_rate: int, channel: int | None = None) -> Iterator[np.ndarray]:
    """What `read_blocks` gives, of an array instead of a file.

    Args:
        samples: (N,) or (N, channels): floating-point numbers in -1…1, or integers, scaled by their type's range.
        rate: Hz.
        sample_rate, channel: as in `read_audio`.

    Raises:
        AudioError: another shape or type, no samples, NaN samples, or no such channel.
    """
    samples = np.asarray(samples)
    scale = full_scale(samples, (1, 2))
    rows = samples[:, None] if samples.ndim == 1 else samples
    if not rows.size:
        raise AudioError(f"array: has shape {samples.shape}: there are no samples.")
    if rows.shape[1] > rows.shape[0]:
        raise AudioError(f"array: has shape {samples.shape}, which must be (N, channels). Transpose it.")
    if not RATES[0] <= rate <= RATES[1] or rate != int(rate):
        raise AudioError(f"array: a sample rate of {rate} Hz cannot be. Give (samples, rate).")
    rate = int(rate)
    if channel is not None and not 0 <= channel < rows.shape[1]:
        raise AudioError(f"array: has no channel {channel}, only {rows.shape[1]} (counted from 0).")

    def mono() -> Iterator[np.ndarray]:
        size = max(1, min(round(BLOCK * rate), BLOCK_VALUES // rows.shape[1]))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            picked = part.mean(axis=1, dtype=np.float64) if channel is None else part[:, channel]
            yield np.ascontiguousarray(picked * scale, np.float32)

    for block in mono() if rate == sample_rate else resample_blocks(mono(), rate, sample_rate):
        if not _is_sound(block):
            raise AudioError(f"array: has samples that are {NO_SOUND}.")
        yield block


def _decode(file: soundfile.SoundFile, name: str, start: int, wanted: int, dtype: str) -> Iterator[np.ndarray]:
    """So many frames from `start` on, or as many as there are, in blocks (frames, channels)."""
    size = max(1, min(round(BLOCK * file.samplerate), BLOCK_VALUES // file.channels))
    try:
        if start:
            file.seek(start)
        while wanted > 0:
            samples = file.read(min(size, wanted), dtype=dtype, always_2d=True)
            if not len(samples):
                return
            yield samples
            wanted -= len(samples)
    except (RuntimeError, MemoryError) as error:  # soundfile's own errors are RuntimeErrors
        raise AudioError(f"{name}: cannot be decoded ({error}).") from None


def lost_seconds(file: soundfile.SoundFile) -> float:
    """Seconds that a cut WAV, AIFF, AU or SPHERE file lacks: libsndfile corrects its length without an error."""
    if file.format == "NIST":
        with open(file.name, "rb") as header:
            found = re.search(rb"^sample_count -i (\d+)", header.read(1024), re.MULTILINE)
        promised, there = int(found[1]) if found else 0, file.frames
    else:
        log = re.search(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
        promised, there = (int(log[1]), int(log[2])) if log else (0, 0)
    if promised <= there or promised >= 0x7FFF0000:  # the latter was written to a pipe: the length was not known
        return 0.0
    seconds = file.frames / file.samplerate * (promised / max(there, 1) - 1)
    return seconds if seconds > 0.1 else 0.0


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resample (N,) float32 samples by a windowed sinc."""
    return _resampler(rate, new_rate)(samples)


def resample_blocks(blocks: Iterable[np.ndarray], rate: int, new_rate: int) -> Iterator[np.ndarray]:
    """Resample a waveform that comes in blocks (N,) float32; together they are what `resample` gives of the whole."""
    transform = _resampler(rate, new_rate)
    period, new_period = transform.period, transform.new_period
    reach = -(-transform.width // period) * period  # samples before and after that one depends on
    waiting, past = np.zeros(0, np.float32), 0  # the first `past` samples have been resampled
    for block in blocks:
        ready = (len(waiting) - reach) // period * period
        if ready > past:
            found = resample(waiting[: ready + reach], rate, new_rate)
            yield found[past // period * new_period : ready // period * new_period]
            first = max(0, ready - reach)
            waiting, past = waiting[first:], ready - first
        waiting = np.concatenate([waiting, block])
    if len(waiting):
        yield resample(waiting, rate, new_rate)[past // period * new_period :]


@lru_cache(maxsize=16)
def _resampler(rate: int, new_rate: int) -> Resampler:
    ratio = Fraction(new_rate, rate)
    if ratio.numerator * ratio.denominator > 1 << 20:  # a rate that is not in use, whose filters would take gigabytes
        ratio = ratio.limit_denominator(1000)
    return Resampler(ratio.denominator, ratio.numerator)


@contextmanager
def open_audio(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """An audio file as libsndfile opens it, after ffmpeg where that is needed; paths as in `read_audio`.

    Raises:
        AudioError: the file is missing or not audio.
    """
    import soundfile

    with ExitStack() as opened:
        if member := parse_member(path):
            yield opened.enter_context(_open_member(member))
            return
        source = opened.enter_context(spool_stdin()) if path == STDIN else path
        _check_file(source)
        try:
            file = opened.enter_context(sound_file(source))
            kind = "FLAC of unknown length" if file.frames > UNKNOWN else None
        except soundfile.LibsndfileError as error:
            kind = container(source)
            if not kind:
                raise AudioError(f"{shown(path)}: cannot be read as audio ({error.error_string}).") from None
        except soundfile.SoundFileRuntimeError as error:
            raise AudioError(f"{path}: {error}. Make it a WAV.") from None
        if kind:
            copy = opened.enter_context(decode_container(source, kind, shown(path)))
            file = opened.enter_context(soundfile.SoundFile(copy))
        yield file


def sound_file(path: str | Path) -> soundfile.SoundFile:
    """What libsndfile opens, whatever bytes its name has.

    Raises:
        soundfile.SoundFileRuntimeError: it cannot; `LibsndfileError` where the file is to blame, not its suffix.
    """
    import soundfile

    try:
        return soundfile.SoundFile(os.fsencode(path))
    except TypeError:  # at the suffix .raw
        raise soundfile.SoundFileRuntimeError("samples without a header, so their rate is unknown") from None


def _open_member(member: Member) -> soundfile.SoundFile:
    import soundfile

    try:
        return soundfile.SoundFile(read_member(member))
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{member}: cannot be read as audio ({error.error_string}).") from None


def _check_file(path: str | Path) -> None:
    if not os.path.exists(path):
        raise AudioError(f"{path}: no such audio file.")
    if os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK):
        raise AudioError(f"{path}: is a folder that cannot be read (Permission denied).")
    if not os.path.isfile(path):
        raise AudioError(f"{path}: is a {'folder' if os.path.isdir(path) else 'device or pipe'}, not an audio file.")
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror}).") from None
    if empty:
        raise AudioError(f"{path}: the file is empty (0 bytes).")


def shown(path: str | Path) -> str:
    """The path, as messages name it."""
    return "standard input" if path == STDIN else str(path)
