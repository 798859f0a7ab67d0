"""Reading audio files: any rate and channel count in, one waveform at the wanted rate out."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asr.data.resampling import Resampler
from asr.errors import AudioError

if TYPE_CHECKING:
    import soundfile

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".sph", ".aiff", ".aif", ".au", ".w64", ".m4a")
"""What is taken for audio in a folder, in lower case."""


def audio_duration(path: str | Path) -> float:
    """Seconds of audio that the file's header promises.

    Raises:
        AudioError: the file is missing or not audio.
    """
    with _open(path) as file:
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
        path: any format of libsndfile: WAV, FLAC, OGG (Vorbis, Opus), MP3, NIST SPHERE, AIFF, AU.
        sample_rate: Hz wanted; another rate in the file is resampled (windowed sinc).
        offset: seconds from the start of the file.
        duration: seconds; `None` reads to the end.
        channel: which one to take, from 0; `None` averages all.

    Returns:
        (N,) float32 in -1…1.

    Raises:
        AudioError: missing, not audio, cut short, empty segment, NaN samples, or no such channel.
    """
    with _open(path) as file:
        rate, start = file.samplerate, round(offset * file.samplerate)
        wanted = file.frames - start if duration is None else round(duration * rate)
        if start >= file.frames or wanted <= 0:
            raise AudioError(
                f"{path}: no audio at {offset:.3f} s; the file has {file.frames / rate:.3f} s. "
                "Check 'offset' and 'duration' of the manifest, or leave the file out."
            )
        if duration is None and (lost := lost_seconds(file)):
            raise AudioError(
                f"{path}: cut short: {lost:.3f} s that its header promises are missing. "
                "Fetch the file again, or leave it out."
            )
        try:
            file.seek(start)
            samples = file.read(wanted, dtype="float32", always_2d=True)
        except (RuntimeError, MemoryError) as error:  # soundfile's own errors are RuntimeErrors
            raise AudioError(f"{path}: cannot be decoded ({error}).") from None
    # a duration in the manifest is rounded, and MP3 headers promise a frame too many
    if len(samples) < wanted - max(0.02 * wanted, 0.1 * rate):
        raise AudioError(
            f"{path}: cut short: {len(samples) / rate:.3f} s of the {wanted / rate:.3f} s from {offset:.3f} s "
            "could be read. Fetch the file again, or leave it out."
        )
    if channel is not None and not 0 <= channel < samples.shape[1]:
        raise AudioError(f"{path}: has no channel {channel}, only {samples.shape[1]} (counted from 0).")
    mono = samples.mean(axis=1) if channel is None else np.ascontiguousarray(samples[:, channel])
    if not np.isfinite(mono).all():
        raise AudioError(f"{path}: has samples that are not numbers (NaN or infinite). Leave the file out.")
    return mono if rate == sample_rate else resample(mono, rate, sample_rate)


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


@lru_cache(maxsize=16)
def _resampler(rate: int, new_rate: int) -> Resampler:
    return Resampler(rate, new_rate)


def _open(path: str | Path):
    import soundfile

    if not os.path.exists(path):
        raise AudioError(f"{path}: no such audio file.")
    if not os.path.isfile(path):
        raise AudioError(f"{path}: is a folder, not an audio file.")
    if os.path.getsize(path) == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes).")
    try:
        return soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: cannot be read as audio ({error.error_string}).") from None
