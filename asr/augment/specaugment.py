"""SpecAugment: masks over frequency and time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from asr.augment.seeds import generators
from asr.errors import ConfigError


class SpecAugment(nn.Module):
    """Set random bands and spans of the normalised features to zero, their mean (Park et al., arXiv 1904.08779).

    Args:
        frequency_masks: how many bands.
        frequency_width: the widest band, in features; each width is uniform from 0 to it.
        time_masks: how many spans; below 1, how many for each frame of the utterance, rounded down (adaptive
            multiplicity, Park et al., arXiv 1912.05533: 0.04, with a time_width of 0.04).
        time_width: the longest span, as a share of the utterance's frames.
        most_time_masks: where their number grows with the utterance, it does so up to here.
        start_step: optimizer steps before it, without masks. CTC begins with nothing but blanks, and with masks from
            the start it may not get further on some hours of varied speech.

    Shapes: features (B, T, D), lengths (B,) → the same.
    """

    domain = "features"

    def __init__(
        self,
        frequency_masks: int = 2,
        frequency_width: int = 27,
        time_masks: float = 2,
        time_width: float = 0.1,
        most_time_masks: int = 20,
        start_step: int = 0,
    ):
        super().__init__()
        counts = (frequency_masks, frequency_width, time_masks, most_time_masks, start_step)
        if min(counts) < 0 or not 0 <= time_width <= 1:
            raise ConfigError("augment.specaugment: no number may be negative, time_width at most 1.")
        if time_masks >= 1 and time_masks != int(time_masks):
            raise ConfigError(f"augment.specaugment.time_masks={time_masks}: must be whole, or below 1 (per frame).")
        self.frequency_masks, self.frequency_width = frequency_masks, frequency_width
        self.time_masks, self.time_width, self.most_time_masks = time_masks, time_width, most_time_masks
        self.start_step = start_step

    def forward(self, features: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        _, frames, dim = features.shape
        bands = np.zeros((len(seeds), dim), bool)
        spans = np.zeros((len(seeds), frames), bool)
        for row, (length, random) in enumerate(zip(lengths.tolist(), generators(seeds, 2), strict=True)):
            for _ in range(self.frequency_masks):
                _mask(bands[row], dim, min(self.frequency_width, dim), random)
            count = self.time_masks if self.time_masks >= 1 else min(length * self.time_masks, self.most_time_masks)
            for _ in range(int(count)):
                _mask(spans[row], length, int(length * self.time_width), random)
        hidden = torch.from_numpy(bands)[:, None, :] | torch.from_numpy(spans)[:, :, None]
        return features.masked_fill(hidden.to(features.device, non_blocking=True), 0), lengths


def _mask(row: np.ndarray, length: int, widest: int, random: np.random.Generator) -> None:
    width = int(random.integers(widest + 1))
    start = int(random.integers(length - width + 1))
    row[start : start + width] = True
