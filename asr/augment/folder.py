"""Folders of recordings, noises or impulse responses, that an augmentation draws from."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from asr.data.audio import AUDIO_SUFFIXES, open_audio, read_audio
from asr.data.folders import files_below
from asr.errors import AudioError, ConfigError

SILENCE = 1e-4
"""Peak below which a recording holds nothing: -80 dB."""


@lru_cache
def recordings(folder: str, key: str, channel: int | None = None) -> tuple[tuple[Path, float], ...]:
    """All audio files below a folder, in the order of their names, with their seconds; each is read, and once only.

    Args:
        folder: where they are, at any depth.
        key: of the config where the folder was named, for messages.
        channel: the one that will be listened to; `None`: the mean of all.

    Raises:
        ConfigError: there is no such folder, or no audio in it.
        AudioError: a file cannot be read, or is silent.
    """
    if not Path(folder).is_dir():
        raise ConfigError(f"{key}={folder}: no such folder.")
    paths = [path for path in sorted(map(Path, files_below(folder))) if path.suffix.lower() in AUDIO_SUFFIXES]
    if not paths:
        raise ConfigError(f"{key}={folder}: no audio in it ({', '.join(AUDIO_SUFFIXES)}).")
    return tuple((path, _checked_duration(path, key, channel)) for path in paths)


def _checked_duration(path: Path, key: str, channel: int | None) -> float:
    try:
        with open_audio(path) as file:
            rate, seconds = file.samplerate, file.frames / file.samplerate
        samples = read_audio(path, rate, channel=channel)
    except AudioError as error:
        raise AudioError(f"{key}: {error}") from None
    if np.abs(samples).max() < SILENCE:
        raise AudioError(f"{key}: {path}: is silent. Leave the file out.")
    return seconds
