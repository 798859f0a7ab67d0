"""Lossy compression: Opus and MP3, there and back."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from asr.augment.options import check_probability, check_range
from asr.augment.seeds import generators
from asr.errors import ConfigError

MP3_DELAY = 576 + 529
"""Samples that an encoder and a decoder of MP3 are late."""
RATES = {
    "opus": (8000, 12000, 16000, 24000, 48000),
    "mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
}


class Codec(nn.Module):
    """Compress each utterance by a random codec and bit rate, and decode it (Vu et al., APSIPA 2019).

    libsndfile does both, on the CPU, in as many threads as torch has: Opus takes about 17 ms for a second of speech,
    MP3 4. A codec's delay is taken out; what lies beyond -1 … 1 may be clipped.

    Args:
        codecs: "opus" and "mp3", or one of them.
        sample_rate: of the waveforms; Opus knows 8, 12, 16, 24 and 48 kHz only.
        lowest_kbps, highest_kbps: the logarithm of the bit rate is uniform between theirs. MP3 takes the nearest rate
            that it has, at 16 kHz 8 … 160, Opus 6 … 256.
        probability: of an utterance to be altered.

    Shapes: waveforms (B, N), lengths (B,) samples → the same.
    """

    domain = "waveform"

    def __init__(
        self,
        codecs: list[str] = ("opus", "mp3"),  # type: ignore[assignment]
        sample_rate: int = 16000,
        lowest_kbps: float = 8.0,
        highest_kbps: float = 64.0,
        probability: float = 0.2,
    ):
        super().__init__()
        if not codecs or not set(codecs) <= set(RATES):
            raise ConfigError(f"augment.codec.codecs={list(codecs)}: must be some of {', '.join(RATES)}.")
        for codec in codecs:
            if sample_rate not in RATES[codec]:
                known = ", ".join(map(str, RATES[codec]))
                raise ConfigError(
                    f"augment.codec.codecs: {codec} has {known} Hz, not sample_rate={sample_rate}: leave it out."
                )
        check_range("codec", "_kbps", lowest_kbps, highest_kbps, 6, 320)
        check_probability("codec", probability)
        self.codecs, self.sample_rate, self.probability = list(codecs), sample_rate, probability
        self.logs = (np.log(lowest_kbps), np.log(highest_kbps))

    def forward(self, waveforms: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        draws = {
            row: (str(random.choice(self.codecs)), np.exp(random.uniform(*self.logs)))
            for row, random in enumerate(generators(seeds, 8))
            if random.random() < self.probability
        }
        if not draws:
            return waveforms, lengths
        heard = waveforms.cpu().numpy().copy()

        def round_trip(row: int) -> None:
            samples = heard[row, : int(lengths[row])]
            samples[:] = decode(encode(samples, self.sample_rate, *draws[row]), len(samples))

        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            list(threads.map(round_trip, draws))  # a list raises what a thread raised
        return torch.from_numpy(heard).to(waveforms.device, non_blocking=True), lengths


def encode(samples: np.ndarray, sample_rate: int, codec: str, kbps: float) -> bytes:
    """(N,) samples → an Ogg Opus or MP3 file of about so many kbit/s, or what comes nearest to it."""
    if codec == "opus":
        low, high, top = 6, 256, 1.0
        kind = {"format": "OGG", "subtype": "OPUS"}
    else:
        low, high = (8, 64) if sample_rate < 16000 else (8, 160) if sample_rate < 32000 else (32, 320)
        top = 0.99  # libsndfile refuses 1
        kind = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT"}
    level = (high - kbps) / (high - low)  # libsndfile's scale of bit rates
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, compression_level=min(max(level, 0.0), top), **kind)  # type: ignore[arg-type]
    return file.getvalue()


def decode(file: bytes, length: int) -> np.ndarray:
    """A compressed file → its (length,) samples, without the delay of its codec."""
    samples, _ = soundfile.read(io.BytesIO(file), dtype="float32")
    if len(samples) > length:  # an MP3 of a low bit rate has no room for the tag that tells the delay
        samples = samples[MP3_DELAY:]
    return samples[:length]
