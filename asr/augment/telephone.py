"""The telephone network: a narrow band, and eight bits a sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchaudio.functional import fftconvolve, resample

from asr.augment.options import check_probability
from asr.augment.seeds import generators
from asr.errors import ConfigError
from asr.featurizers.normalization import frame_mask

RATE = 8000


class Telephone(nn.Module):
    """Send each utterance over the telephone: 8 kHz, band-pass (ITU-T G.712), μ-law companding (ITU-T G.711).

    The filter is a linear-phase windowed sinc, and centred: speech stays where it is in time. All up to the companding
    is computed in float64: a rounding that depends on the batch would now and then end in another step of it.

    Args:
        sample_rate: of the waveforms; 8000 or more.
        low_hz, high_hz: what the line lets pass.
        probability: of an utterance to be altered.

    Shapes: waveforms (B, N), lengths (B,) samples → the same.
    """

    domain = "waveform"
    filter: Tensor

    def __init__(
        self, sample_rate: int = 16000, low_hz: float = 300.0, high_hz: float = 3400.0, probability: float = 0.2
    ):
        super().__init__()
        if sample_rate < RATE:
            raise ConfigError(f"augment.telephone.sample_rate={sample_rate}: must be {RATE} or more.")
        if not 0 <= low_hz < high_hz <= RATE / 2:
            raise ConfigError(f"augment.telephone: low_hz={low_hz} and high_hz={high_hz} must ascend, from 0 to 4000.")
        check_probability("telephone", probability)
        self.sample_rate, self.probability = sample_rate, probability
        times = torch.arange(-128, 129, dtype=torch.float64) / RATE  # 32 ms: an edge is about 100 Hz wide
        band = 2 * high_hz * torch.sinc(2 * high_hz * times) - 2 * low_hz * torch.sinc(2 * low_hz * times)
        taps = band * torch.hann_window(259, periodic=False, dtype=torch.float64)[1:-1] / RATE
        self.register_buffer("filter", taps[None], persistent=False)

    def forward(self, waveforms: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.tensor([k for k, g in enumerate(generators(seeds, 7)) if g.random() < self.probability])
        if not len(rows):
            return waveforms, lengths
        place = rows.to(waveforms.device)
        samples = waveforms.shape[1]
        narrow = resample(waveforms[place].double(), self.sample_rate, RATE, lowpass_filter_width=16)
        # a filter rings past an utterance's end, where the next must find silence
        padding = ~frame_mask(-(-lengths[rows] * RATE // self.sample_rate), narrow.shape[1], narrow.device)
        narrow = fftconvolve(narrow.masked_fill(padding, 0), self.filter, mode="same")
        narrow = mu_law(narrow).masked_fill(padding, 0).float()
        heard = resample(narrow, RATE, self.sample_rate, lowpass_filter_width=16)[:, :samples]
        heard = heard.masked_fill(~frame_mask(lengths[rows], samples, heard.device), 0)
        return waveforms.index_copy(0, place, heard), lengths


def mu_law(samples: Tensor) -> Tensor:
    """Samples in -1…1 after the μ-law of G.711 and back: 8 segments of 16 steps, each segment twice as coarse."""
    magnitudes = (samples.abs() * 8192).floor().clamp(max=8158) + 33
    steps = torch.exp2(magnitudes.log2().floor() - 4)
    decoded = ((magnitudes / steps).floor() + 0.5) * steps - 33
    return samples.sign() * decoded / 8192
