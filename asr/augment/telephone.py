"""The telephone network: a narrow band, and eight bits a sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asr.augment.convolution import convolve
from asr.augment.options import check_probability
from asr.augment.seeds import generators
from asr.errors import ConfigError
from asr.featurizers.normalization import frame_mask

RATE = 8000


class Telephone(nn.Module):
    """Send each utterance over the telephone: 8 kHz, band-pass (ITU-T G.712), μ-law companding (ITU-T G.711).

    One linear-phase windowed sinc filters ahead of both changes of the rate, centred: speech stays where it is in time.
    All up to the companding is float64: roundings that depend on the batch would now and then end in another step.

    Args:
        sample_rate: of the waveforms, a multiple of 8000 Hz.
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
        if sample_rate < RATE or sample_rate % RATE:
            raise ConfigError(f"augment.telephone.sample_rate={sample_rate}: must be a multiple of {RATE} Hz.")
        if not 0 <= low_hz < high_hz <= 3900:
            raise ConfigError(f"augment.telephone: low_hz={low_hz} and high_hz={high_hz} must ascend, within 0 … 3900.")
        check_probability("telephone", probability)
        self.step, self.probability = sample_rate // RATE, probability
        self.delay = 128 * self.step
        times = torch.arange(-self.delay, self.delay + 1).double() / sample_rate  # 32 ms: edges 100 Hz wide
        band = 2 * high_hz * torch.sinc(2 * high_hz * times) - 2 * low_hz * torch.sinc(2 * low_hz * times)
        taps = band * torch.hann_window(len(times), periodic=False, dtype=torch.float64) / sample_rate
        self.register_buffer("filter", taps[None], persistent=False)

    def forward(self, waveforms: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.tensor([k for k, g in enumerate(generators(seeds, 7)) if g.random() < self.probability])
        if not len(rows):
            return waveforms, lengths
        place = rows.to(waveforms.device, non_blocking=True)
        narrow = mu_law(self._filtered(waveforms[place].double())[:, :: self.step])
        # the filter rings past an utterance's end, and must find silence there when it is met again
        padding = ~frame_mask(-(-lengths[rows] // self.step), narrow.shape[1], narrow.device)
        heard = torch.zeros_like(waveforms[place])
        heard[:, :: self.step] = self.step * narrow.masked_fill(padding, 0).float()
        padding = ~frame_mask(lengths[rows], heard.shape[1], heard.device)
        return waveforms.index_copy(0, place, self._filtered(heard).masked_fill(padding, 0)), lengths

    def _filtered(self, x: Tensor) -> Tensor:
        return convolve(x, self.filter.to(x))[:, self.delay : self.delay + x.shape[1]]


def mu_law(samples: Tensor) -> Tensor:
    """Samples in -1…1 after the μ-law of G.711 and back: 8 segments of 16 steps, each segment twice as coarse."""
    magnitudes = (samples.abs() * 8192).floor().clamp(max=8158) + 33
    steps = torch.exp2(torch.frexp(magnitudes).exponent.to(samples) - 5)
    decoded = ((magnitudes / steps).floor() + 0.5) * steps - 33
    return samples.sign() * decoded / 8192
