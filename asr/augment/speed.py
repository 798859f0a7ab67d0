"""Speed perturbation by resampling."""

from __future__ import annotations

from fractions import Fraction

import torch
import torchaudio
from torch import Tensor, nn

from asr.augment.seeds import generators
from asr.errors import ConfigError
from asr.featurizers.normalization import frame_mask


class SpeedPerturbation(nn.Module):
    """Play each utterance at a speed drawn at random, pitch changing with it (Ko et al., Interspeech 2015).

    Args:
        factors: the speeds to draw from, in steps of a thousandth; 1.1 shortens an utterance by a tenth.

    Shapes: waveforms (B, N), lengths (B,) samples → (B, N'), lengths (B,).
    """

    domain = "waveform"

    def __init__(self, factors: list[float] = (0.9, 1.0, 1.1)):  # type: ignore[assignment]
        super().__init__()
        if not factors or not all(0.5 <= factor <= 2 for factor in factors):
            raise ConfigError(f"augment.speed.factors={list(factors)}: must be speeds from 0.5 to 2.")
        self.ratios = [Fraction(factor).limit_denominator(1000) for factor in factors]
        self.max_speed = float(max(self.ratios))
        # the ratio matters, not the rate: small numbers make short filters
        self.resample = nn.ModuleList(torchaudio.transforms.Resample(*r.as_integer_ratio()) for r in self.ratios)

    def forward(self, waveforms: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        choices = torch.tensor([int(g.integers(len(self.ratios))) for g in generators(seeds, 1)])
        pieces: list[Tensor] = [waveforms] * len(lengths)
        new_lengths = lengths.clone()
        for choice, resample in enumerate(self.resample):
            rows = torch.nonzero(choices == choice).flatten()
            if len(rows) and self.ratios[choice] != 1:
                place, longest = rows.to(waveforms.device, non_blocking=True), int(lengths[rows].max())
                # the filter looks past an utterance's end, and must find silence there
                padding = ~frame_mask(lengths[rows], longest, waveforms.device)
                changed = resample(waveforms[place, :longest].masked_fill(padding, 0))
                ratio = self.ratios[choice]
                new_lengths[rows] = -(-lengths[rows] * ratio.denominator // ratio.numerator)
                for row, piece in zip(rows.tolist(), changed, strict=True):
                    pieces[row] = piece[: new_lengths[row]]
            else:
                for row in rows.tolist():
                    pieces[row] = waveforms[row, : lengths[row]]
        if not pieces:
            return waveforms, lengths
        return nn.utils.rnn.pad_sequence(pieces, batch_first=True), new_lengths
