"""Vocal tract length perturbation: the frequency axis of mel features, stretched at random."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from asr.augment.options import check_probability, check_range
from asr.augment.seeds import generators
from asr.errors import ConfigError


class Vtlp(nn.Module):
    """Make each speaker's vocal tract longer or shorter (Jaitly & Hinton, ICML workshop 2013).

    Mel band k, centred at f Hz, becomes what the features have at g(f), with α drawn for each utterance, the boundary
    F and the top S of the scale (the paper's S/2):

        g(f) = α f                                                           f ≤ F min(α, 1) / α
        g(f) = S − (S − F min(α, 1)) / (S − F min(α, 1) / α) · (S − f)       above

    so that α > 1 lowers the formants, as a longer vocal tract does. The paper moves the filters; this interpolates
    linearly between neighbouring bands, which needs no second look at the waveform. The features are normalised by
    then: what deviates from the mean spectrum is warped, the mean itself stays, which leaves out a constant for each
    band. On AN4 with α = 0.9 a band changes by 0.39 standard deviations (root mean square); moved filters give the
    same to 0.13, and to 0.09 but for that constant.

    Args:
        bands: of the featurizer; its features must be log mel energies.
        sample_rate, low_hz, high_hz: as in the featurizer.
        lowest, highest: α is uniform between them.
        boundary_hz: F, below which the warping is proportional; `None`: 0.6 S, the paper's 4800 Hz at 16 kHz.
        probability: of an utterance to be warped.
        coefficients: of cepstra, which have no axis to warp: must be `None`.

    Shapes: features (B, T, bands), lengths (B,) → the same.
    """

    domain = "features"

    def __init__(
        self,
        bands: int,
        sample_rate: int = 16000,
        low_hz: float = 20.0,
        high_hz: float | None = None,
        lowest: float = 0.9,
        highest: float = 1.1,
        boundary_hz: float | None = None,
        probability: float = 1.0,
        coefficients: int | None = None,
    ):
        super().__init__()
        if bands < 2 or coefficients is not None:
            raise ConfigError(f"augment.vtlp.bands={bands}: it warps log mel energies: take featurizer=log_mel.")
        check_range("vtlp", "", lowest, highest, 0.5, 2)
        check_probability("vtlp", probability)
        self.bands, self.lowest, self.highest, self.probability = bands, lowest, highest, probability
        self.top = sample_rate / 2 if high_hz is None else high_hz
        self.boundary = 0.6 * self.top if boundary_hz is None else boundary_hz
        if not 0 < self.boundary < self.top:
            raise ConfigError(f"augment.vtlp.boundary_hz={boundary_hz}: must be above 0 and below {self.top} Hz.")
        mels = np.linspace(_hz_to_mel(low_hz), _hz_to_mel(self.top), bands + 2)
        self.first_mel, self.mel_step = mels[1], mels[1] - mels[0]
        self.centres = 700 * (10 ** (mels[1:-1] / 2595) - 1)

    def forward(self, features: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        if features.shape[2] != self.bands:
            raise ConfigError(
                f"augment.vtlp.bands={self.bands}, but there are {features.shape[2]} features a frame: it warps log "
                "mel energies: take featurizer=log_mel."
            )
        draws = [(g.random(), g.uniform(self.lowest, self.highest)) for g in generators(seeds, 3)]
        factors = np.array([factor if chance < self.probability else 1.0 for chance, factor in draws])
        positions = torch.from_numpy(self.positions(factors)).float()
        # (B, bands, bands): column k holds the weights of the two bands about its position
        weights = (1 - (positions[:, None, :] - torch.arange(self.bands)[None, :, None]).abs()).clamp(min=0)
        return features @ weights.to(features, non_blocking=True), lengths

    def positions(self, factors: np.ndarray) -> np.ndarray:
        """Warping factors (B,) → (B, bands): where on the axis of bands each band takes its value from."""
        factors = factors[:, None]
        end = self.boundary * np.minimum(factors, 1)
        slope = (self.top - end) / (self.top - end / factors)
        warped = np.where(
            self.centres <= end / factors, factors * self.centres, self.top - slope * (self.top - self.centres)
        )
        return ((_hz_to_mel(warped) - self.first_mel) / self.mel_step).clip(0, self.bands - 1)


def _hz_to_mel(hz: float | np.ndarray) -> np.ndarray:
    return 2595 * np.log10(1 + np.asarray(hz) / 700)
