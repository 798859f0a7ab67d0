"""Additive noise, recorded or coloured."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from asr.augment.folder import recordings
from asr.augment.options import check_probability, check_range
from asr.augment.seeds import generators
from asr.data.audio import read_audio

LOWEST_HZ = 20.0
"""Coloured noise begins here: the energy of a steep one would else lie where nobody hears it."""


class Noise(nn.Module):
    """Add noise at a random signal-to-noise ratio (Hannun et al., Deep Speech, arXiv 1412.5567).

    The ratio is that of the mean squares over the whole utterance. The noise is a random segment of a random
    recording, looped if that is too short; without recordings, Gaussian with a power spectrum of 1/f^β from 20 Hz on:
    white, pink and brown for β = 0, 1 and 2.

    Args:
        path: folder of noise recordings, in any format, at any depth; null: coloured noise.
        sample_rate: of the waveforms.
        lowest_snr_db, highest_snr_db: the ratio is uniform between them.
        lowest_slope, highest_slope: β, uniform between them.
        probability: of an utterance to get noise.

    Shapes: waveforms (B, N), lengths (B,) samples → the same.

    Raises:
        AudioError: a recording cannot be read, or is silent.
    """

    domain = "waveform"

    def __init__(
        self,
        path: str | None = None,
        sample_rate: int = 16000,
        lowest_snr_db: float = 5.0,
        highest_snr_db: float = 25.0,
        lowest_slope: float = 0.0,
        highest_slope: float = 2.0,
        probability: float = 0.5,
    ):
        super().__init__()
        check_range("noise", "_snr_db", lowest_snr_db, highest_snr_db, -100, 100)
        check_range("noise", "_slope", lowest_slope, highest_slope, -4, 4)
        check_probability("noise", probability)
        self.recordings = recordings(path, "augment.noise.path") if path is not None else ()
        self.sample_rate, self.probability = sample_rate, probability
        self.snrs, self.slopes = (lowest_snr_db, highest_snr_db), (lowest_slope, highest_slope)

    def forward(self, waveforms: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        noise = np.zeros(waveforms.shape, np.float32)
        ratios = np.ones((len(seeds), 1), np.float32)
        for row, (length, random) in enumerate(zip(lengths.tolist(), generators(seeds, 4), strict=True)):
            if random.random() < self.probability:
                ratios[row] = 10 ** (random.uniform(*self.snrs) / 20)
                noise[row, :length] = (
                    self._recorded(length, random) if self.recordings else self._coloured(length, random)
                )
        added, amplitudes = (torch.from_numpy(x).to(waveforms.device, non_blocking=True) for x in (noise, ratios))
        energies = waveforms.square().sum(1, keepdim=True) / added.square().sum(1, keepdim=True).clamp(min=1e-20)
        return waveforms + added * energies.sqrt() / amplitudes, lengths

    def _recorded(self, length: int, random: np.random.Generator) -> np.ndarray:
        path, seconds = self.recordings[random.integers(len(self.recordings))]
        wanted = max(length / self.sample_rate, 0.2)  # an MP3's header may promise a frame too many
        if seconds > wanted:
            segment = read_audio(path, self.sample_rate, random.uniform(0, seconds - wanted), wanted)
        else:
            segment = read_audio(path, self.sample_rate)
            segment = np.roll(segment, random.integers(len(segment)))
        return np.resize(segment, length)  # repeats it

    def _coloured(self, length: int, random: np.random.Generator) -> np.ndarray:
        slope = random.uniform(*self.slopes)
        size = 1 << (length - 1).bit_length()  # periodic, and fast
        hz = np.arange(size // 2 + 1, dtype=np.float32) * (self.sample_rate / size)
        gains = np.where(hz < LOWEST_HZ, 0, (hz / LOWEST_HZ).clip(1) ** (-slope / 2)).astype(np.float32)
        spectrum = random.standard_normal((len(hz), 2), np.float32).view(np.complex64)[:, 0]
        return np.fft.irfft(gains * spectrum, size)[:length]
