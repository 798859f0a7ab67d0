"""Louder and softer recordings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asr.augment.options import check_probability, check_range
from asr.augment.seeds import generators


class Volume(nn.Module):
    """Multiply each utterance by a random gain (Peddinti et al., ASRU 2015).

    Args:
        lowest_db, highest_db: the gain is uniform between them, in decibels.
        clip: whether samples end at -1 and 1, as those of a recording with too much gain do.
        probability: of an utterance to be altered.

    Shapes: waveforms (B, N), lengths (B,) samples → the same.
    """

    domain = "waveform"

    def __init__(
        self, lowest_db: float = -12.0, highest_db: float = 12.0, clip: bool = False, probability: float = 1.0
    ):
        super().__init__()
        check_range("volume", "_db", lowest_db, highest_db, -100, 100)
        check_probability("volume", probability)
        self.gains, self.clip, self.probability = (lowest_db, highest_db), clip, probability

    def forward(self, waveforms: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        draws = [(g.random(), g.uniform(*self.gains)) for g in generators(seeds, 6)]
        gains = torch.tensor([10 ** (gain / 20) if chance < self.probability else 1.0 for chance, gain in draws])
        louder = waveforms * gains[:, None].to(waveforms.device, non_blocking=True)
        return louder.clamp(-1, 1) if self.clip else louder, lengths
