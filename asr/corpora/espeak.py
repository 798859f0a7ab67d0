"""A speech synthesis worker: `python -m asr.corpora.espeak` reads JSON requests, a line each, and writes FLAC files.

espeak-ng is under the GPL and written in C: it stays in this process, which nothing of ours imports.
The first line on stdout says which voice variants there are; each further line answers a request.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE_RATE = 16000
RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER
RETRIEVAL, UTF8 = 1, 1  # espeak_AUDIO_OUTPUT: samples go to the callback; espeakCHARS_UTF8
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The library of espeakng_loader, driven by its C API (speak_lib.h)."""

    def __init__(self) -> None:
        import espeakng_loader

        self.data = str(espeakng_loader.get_data_path())
        self.library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        self.rate = self.library.espeak_Initialize(RETRIEVAL, 0, self.data.encode(), 0)
        if self.rate <= 0:
            raise RuntimeError(f"espeak_Initialize: {self.rate}")
        self.blocks: list[np.ndarray] = []
        self.callback = Callback(self._collect)  # kept, because C holds only its address
        self.library.espeak_SetSynthCallback(self.callback)

    def _collect(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self.blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def variants(self) -> list[str]:
        return sorted(os.listdir(os.path.join(self.data, "voices", "!v")))

    def synthesize(self, text: str, voice: str, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
        """Speak a text: (N,) float32 samples at `self.rate`.

        Args:
            text: what to say.
            voice: accent and variant, such as `en-us+f2`.
            rate: words per minute.
            pitch: 0 to 99, 50 being the voice's own.
            pitch_range: 0 (monotone) to 99.
        """
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"no voice '{voice}'")
        for parameter, value in ((RATE, rate), (PITCH, pitch), (RANGE, pitch_range)):
            self.library.espeak_SetParameter(parameter, value, 0)
        self.blocks = []
        data = text.encode()
        status = self.library.espeak_Synth(data, len(data) + 1, 0, 0, 0, UTF8, None, None)
        if status or self.library.espeak_Synchronize():
            raise RuntimeError(f"espeak_Synth: {status}")
        if not self.blocks:
            raise RuntimeError("nothing was said")
        return np.concatenate(self.blocks).astype(np.float32) / 32768


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resample (N,) whole utterances by cutting their spectrum (importing torch would take longer)."""
    divisor = int(np.gcd(rate, new_rate))
    up, down = new_rate // divisor, rate // divisor
    blocks = -(-len(samples) // down)
    spectrum = np.fft.rfft(samples, blocks * down)
    count = blocks * up
    return (np.fft.irfft(spectrum[: count // 2 + 1], count) * (up / down)).astype(np.float32)


def record(speech: np.ndarray, level: float, snr: float, tilt: float, margins: tuple[float, float], seed: int):
    """Put speech into a room that is not quite silent.

    Args:
        speech: (N,) samples.
        level: dBFS of the speech (root mean square).
        snr: dB from the noise to the speech.
        tilt: the noise's power falls with frequency^-tilt: 0 is white, 1 pink, 2 brown.
        margins: seconds of noise before and after.
        seed: of the noise.

    Returns:
        (M,) float32, at most 0.95 in amplitude.
    """
    before, after = (round(seconds * SAMPLE_RATE) for seconds in margins)
    clean = np.pad(speech * 10 ** (level / 20) / max(_rms(speech), 1e-6), (before, after))
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(len(clean)))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1.0) ** (-tilt / 2)
    noise = np.fft.irfft(spectrum, len(clean))
    mixed = clean + noise * 10 ** ((level - snr) / 20) / _rms(noise)
    return (mixed * min(1.0, 0.95 / np.abs(mixed).max())).astype(np.float32)


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples))))


def main() -> None:
    import soundfile

    espeak = Espeak()
    print(json.dumps({"variants": espeak.variants()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            speech = espeak.synthesize(**request["speech"])
            samples = record(resample(speech, espeak.rate, SAMPLE_RATE), **request["recording"])
            encoded = io.BytesIO()
            soundfile.write(encoded, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            Path(request["path"]).write_bytes(encoded.getvalue())
            answer: dict[str, Any] = {"duration": len(samples) / SAMPLE_RATE}
        except OSError as error:
            answer = {"error": error.strerror, "errno": error.errno}
        except (ValueError, RuntimeError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
