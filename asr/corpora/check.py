"""What is wrong with an utterance, found before training: by the audio's header and, as far as needed, its samples."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from asr.data.audio import UNREADABLE_AUDIO, lost_seconds, sound_file
from asr.types import Utterance

if TYPE_CHECKING:
    import soundfile

MISSING_AUDIO = "missing audio"
EMPTY_AUDIO = "empty audio"
SILENT_AUDIO = "silent audio"
MISSING_TEXT = "missing text"
OUT_OF_BOUNDS = "duration outside bounds"

SILENCE = 1e-4
"""Peak amplitude (-80 dBFS) below which audio is silent."""
MAX_OVERSHOOT = 0.5
"""Seconds that a segment may end after its file, as in Kaldi's extract-segments; it is cut to the file."""


@dataclass(frozen=True)
class Dropped:
    """An utterance that does not go into the manifest, and why."""

    id: str
    audio_filepath: str
    reason: str
    detail: str = ""
    duration: float = 0.0
    """Seconds, 0 where it is not known."""


def check_utterance(
    utterance: Utterance | Dropped, min_duration: float = 0.0, max_duration: float | None = None
) -> Utterance | Dropped:
    """Return the utterance with an absolute path and its true duration, or why it must be dropped.

    Durations are rounded down to a microsecond, so that offset + duration never passes the end of the file.
    What was already dropped passes through.
    """
    import soundfile

    if isinstance(utterance, Dropped):
        return utterance
    path = os.path.abspath(utterance.audio_filepath)

    def drop(reason: str, detail: str, duration: float = 0.0) -> Dropped:
        return Dropped(utterance.id, path, reason, detail, duration)

    if not os.path.exists(path):
        return drop(MISSING_AUDIO, "no such file")
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return drop(EMPTY_AUDIO, "the file has 0 bytes")
    try:
        with sound_file(path) as file:
            rate = file.samplerate
            available = math.floor(file.frames - utterance.offset * rate)
            wanted = available if utterance.duration is None else round(utterance.duration * rate)
            if available <= 0 or wanted <= 0:
                return drop(EMPTY_AUDIO, f"no samples at {utterance.offset} s; the file has {file.frames / rate} s")
            if wanted - available > MAX_OVERSHOOT * rate:
                excess = (wanted - available) / rate
                return drop(UNREADABLE_AUDIO, f"the segment ends {excess:.2f} s after the end of the file")
            frames = min(wanted, available)
            duration = frames * 10**6 // rate / 10**6
            if not (utterance.text or "").strip():
                return drop(MISSING_TEXT, "", duration)
            if duration < min_duration:
                return drop(OUT_OF_BOUNDS, f"{duration:.3f} s is under min_duration={min_duration}", duration)
            if max_duration is not None and duration > max_duration:
                return drop(OUT_OF_BOUNDS, f"{duration:.3f} s is over max_duration={max_duration}", duration)
            if fault := _samples_fault(file, round(utterance.offset * rate), frames):
                return drop(*fault, duration)
    except soundfile.SoundFileError as error:
        return drop(UNREADABLE_AUDIO, getattr(error, "error_string", str(error)))
    return replace(utterance, audio_filepath=path, duration=duration)


def _samples_fault(file: soundfile.SoundFile, start: int, frames: int) -> tuple[str, str] | None:
    """Read until a sample is loud enough, then the segment's end: silence and cut files are found, cheaply.

    Files of floating-point samples are read whole, because NaN may stand anywhere.
    """
    import numpy as np

    if lost := lost_seconds(file):
        return UNREADABLE_AUDIO, f"cut short: {lost:.3f} s that the header promises are missing"
    slack = round(max(0.02 * frames, 0.1 * file.samplerate))  # MP3 headers promise a frame too many
    whole = file.subtype in ("FLOAT", "DOUBLE")
    file.seek(start)
    done, silent = 0, True
    while done < frames and (silent or whole):
        block = file.read(min(frames - done, 1 << 16), dtype="float32", always_2d=True)
        if not len(block):
            break
        if not np.isfinite(block).all():
            return UNREADABLE_AUDIO, "samples that are not numbers (NaN or infinite)"
        silent = silent and float(np.abs(block).max()) < SILENCE
        done += len(block)
    if done < frames - slack and not silent:
        file.seek(start + frames - slack - 1)
        done = frames if len(file.read(1)) else done
    if done < frames - slack:
        return UNREADABLE_AUDIO, "cut short: the end that the header promises cannot be read"
    return (SILENT_AUDIO, f"no sample above {SILENCE}") if silent else None
