"""A speech synthesis worker: `python -m asr.corpora.espeak` reads JSON requests, a line each, and writes FLAC files.

It also tells how words are pronounced. espeak-ng is under the GPL and written in C: it stays in this process, which
nothing of ours imports; `asr/espeak.py` talks to it.
The first line on stdout says which voice variants there are; each further line answers a request.
"""

from __future__ import annotations

import ctypes
import io
import itertools
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE_RATE = 16000
RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER
RETRIEVAL, UTF8 = 1, 1  # espeak_AUDIO_OUTPUT: samples go to the callback; espeakCHARS_UTF8
IPA = 0x02 | ord("_") << 8  # phoneme_mode of espeak_TextToPhonemes, and what it puts between phonemes
PHONEME_EVENTS, LAST, PHONEME = 1, 0, 7  # espeakINITIALIZE_PHONEME_EVENTS; espeak_EVENT_TYPE


class Event(ctypes.Structure):
    """espeak_EVENT."""

    _fields_ = (
        ("type", ctypes.c_int), ("identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("name", ctypes.c_char * 8),
    )  # fmt: skip


Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


class Espeak:
    """The library of espeakng_loader, driven by its C API (speak_lib.h)."""

    def __init__(self) -> None:
        import espeakng_loader

        self.data = str(espeakng_loader.get_data_path())
        self.library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        self.rate = self.library.espeak_Initialize(RETRIEVAL, 0, self.data.encode(), PHONEME_EVENTS)
        if self.rate <= 0:
            raise RuntimeError(f"espeak_Initialize: {self.rate}")
        self.blocks: list[np.ndarray] = []
        self.phonemes: list[tuple[int, int, bool]] = []
        """Those said last: where its word begins in the text, its first sample, and whether it is a pause."""
        self.callback = Callback(self._collect)  # kept, because C holds only its address
        self.library.espeak_SetSynthCallback(self.callback)
        self.library.espeak_TextToPhonemes.restype = ctypes.c_char_p

    def _collect(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self.blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        for event in itertools.takewhile(lambda event: event.type != LAST, events or ()):
            if event.type == PHONEME:
                self.phonemes.append((event.text_position - 1, event.sample, event.name.startswith(b"_")))
        return 0

    def variants(self) -> list[str]:
        return sorted(os.listdir(os.path.join(self.data, "voices", "!v")))

    def set_voice(self, voice: str) -> None:
        """Take a voice by its name.

        Raises:
            ValueError: there is none.
        """
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"no voice '{voice}'")

    def phones(self, text: str) -> list[str]:
        """How the voice would pronounce a text, in the International Phonetic Alphabet, less stress."""
        rest, found = ctypes.c_char_p(text.encode()), []
        while rest.value is not None:  # a clause at a time
            found.append(self.library.espeak_TextToPhonemes(ctypes.byref(rest), UTF8, IPA).decode())
        marks = r"[ˈˌ]|\([^)]*\)"  # and that words of another language begin: (en)
        return re.sub(marks, "", " ".join(found)).replace("_", " ").split()

    def synthesize(self, text: str, voice: str, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
        """Speak a text: (N,) float32 samples at `self.rate`.

        Args:
            text: what to say.
            voice: accent and variant, such as `en-us+f2`.
            rate: words per minute.
            pitch: 0 to 99, 50 being the voice's own.
            pitch_range: 0 (monotone) to 99.
        """
        self.set_voice(voice)
        for parameter, value in ((RATE, rate), (PITCH, pitch), (RANGE, pitch_range)):
            self.library.espeak_SetParameter(parameter, value, 0)
        self.blocks, self.phonemes = [], []
        data = text.encode()
        status = self.library.espeak_Synth(data, len(data) + 1, 0, 0, 0, UTF8, None, None)
        if status or self.library.espeak_Synchronize():
            raise RuntimeError(f"espeak_Synth: {status}")
        if not self.blocks:
            raise RuntimeError("nothing was said")
        return np.concatenate(self.blocks).astype(np.float32) / 32768

    def word_times(self, text: str) -> list[list[float | None]]:
        """Start and end of each word of the text that was spoken last, in seconds.

        A word lasts from its first phoneme to whatever follows its last, a pause or the next word. They are told by
        phoneme, because espeak-ng's word events come before a consonant that it links to the next word (turn off).
        Words that it takes for one (in the) have no time where they meet: `None`.
        """
        places = {found.start(): k for k, found in enumerate(re.finditer(r"\S+", text))}
        times: list[list[float | None]] = [[None, None] for _ in places]
        for (place, sample, is_pause), (_, following, _) in itertools.pairwise(self.phonemes):
            if not is_pause and place in places:
                spoken = times[places[place]]
                spoken[0] = sample / self.rate if spoken[0] is None else spoken[0]
                spoken[1] = following / self.rate
        for one, other in itertools.pairwise(times):
            if other == [None, None]:
                one[1], other[1] = None, one[1]
        return times


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
    espeak = Espeak()
    print(json.dumps({"variants": espeak.variants()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            if "words" in request:
                espeak.set_voice(request["voice"])
                answer = {"phones": [espeak.phones(word) for word in request["words"]]}
            else:
                answer = _speak(espeak, request)
        except OSError as error:
            answer = {"error": error.strerror, "errno": error.errno}
        except (ValueError, RuntimeError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


def _speak(espeak: Espeak, request: dict[str, Any]) -> dict[str, Any]:
    import soundfile

    speech = espeak.synthesize(**request["speech"])
    samples = record(resample(speech, espeak.rate, SAMPLE_RATE), **request["recording"])
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    Path(request["path"]).write_bytes(encoded.getvalue())
    before = request["recording"]["margins"][0]
    words = espeak.word_times(request["speech"]["text"])
    moved = [[None if time is None else round(before + time, 3) for time in word] for word in words]
    return {"duration": len(samples) / SAMPLE_RATE, "word_times": moved}


if __name__ == "__main__":
    main()
