"""Reverberation by measured or simulated room impulse responses."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from asr.augment.convolution import convolve
from asr.augment.folder import recordings
from asr.augment.options import check_probability, check_range
from asr.augment.seeds import generators
from asr.data.audio import read_audio
from asr.featurizers.normalization import frame_mask

FIRST_REFLECTION = 0.002
"""Seconds from the direct sound to the first of a simulated room's echoes: 0.7 m further."""


class Reverb(nn.Module):
    """Put each utterance into a room (Ko et al., ICASSP 2017).

    The impulse response is measured, of a random file, or simulated: after the direct sound, Gaussian noise that
    decays by 60 dB in a random reverberation time (Polack 1988). All begin at their peak, the direct sound, so that
    speech stays where it is in time. Lengths and each utterance's energy stay as they are.

    Args:
        path: folder of impulse responses, in any format, at any depth (the first channel of each); null: simulated.
        sample_rate: of the waveforms.
        lowest_rt60, highest_rt60: reverberation time in seconds, uniform between them.
        lowest_drr_db, highest_drr_db: energy of the direct sound over that of the echoes, uniform between them.
        probability: of an utterance to be reverberated.

    Shapes: waveforms (B, N), lengths (B,) samples → the same.

    Raises:
        AudioError: an impulse response cannot be read, or is silent.
    """

    domain = "waveform"

    def __init__(
        self,
        path: str | None = None,
        sample_rate: int = 16000,
        lowest_rt60: float = 0.1,
        highest_rt60: float = 0.8,
        lowest_drr_db: float = 0.0,
        highest_drr_db: float = 12.0,
        probability: float = 0.5,
    ):
        super().__init__()
        check_range("reverb", "_rt60", lowest_rt60, highest_rt60, 0.01, 10)
        check_range("reverb", "_drr_db", lowest_drr_db, highest_drr_db, -6, 60)
        check_probability("reverb", probability)
        self.recordings = recordings(path, "augment.reverb.path", channel=0) if path is not None else ()
        self.sample_rate, self.probability = sample_rate, probability
        self.rt60s, self.drrs = (lowest_rt60, highest_rt60), (lowest_drr_db, highest_drr_db)

    def forward(self, waveforms: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        responses = {
            row: torch.from_numpy(self._measured(random) if self.recordings else self._simulated(random))
            for row, random in enumerate(generators(seeds, 5))
            if random.random() < self.probability
        }
        if not responses:
            return waveforms, lengths
        rows = torch.tensor([*responses])
        place = rows.to(waveforms.device, non_blocking=True)
        padded = nn.utils.rnn.pad_sequence([*responses.values()], batch_first=True)
        dry = waveforms[place]
        wet = convolve(dry, padded.to(waveforms.device, non_blocking=True))[:, : dry.shape[1]]
        wet = wet.masked_fill(~frame_mask(lengths[rows], dry.shape[1], dry.device), 0)
        energies = dry.square().sum(1, keepdim=True) / wet.square().sum(1, keepdim=True).clamp(min=1e-20)
        return waveforms.index_copy(0, place, wet * energies.sqrt()), lengths

    def _measured(self, random: np.random.Generator) -> np.ndarray:
        path, _ = self.recordings[random.integers(len(self.recordings))]
        response = read_audio(path, self.sample_rate, channel=0)
        start = np.abs(response).argmax()
        return response[start:] / response[start]

    def _simulated(self, random: np.random.Generator) -> np.ndarray:
        rt60, drr = random.uniform(*self.rt60s), random.uniform(*self.drrs)
        seconds = np.arange(round(rt60 * self.sample_rate), dtype=np.float32) / self.sample_rate
        response = random.standard_normal(len(seconds), np.float32) * 10 ** (-3 * seconds / rt60)
        response[seconds < FIRST_REFLECTION] = 0
        response *= 10 ** (-drr / 20) / np.sqrt(np.sum(response**2))
        response[0] = 1
        return response
