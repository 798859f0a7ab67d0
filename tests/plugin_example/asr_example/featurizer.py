"""Log-mel features and how they change."""

import torch
from torch import Tensor, nn

from asr.featurizers import LogMel


class LogMelDelta(nn.Module):
    """Log-mel energies, and their difference from the frame before (zero for the first).

    Shapes: waveforms (B, N), lengths (B,) samples → features (B, T, 2 · bands), lengths (B,) frames.
    """

    def __init__(self, sample_rate: int = 16000, bands: int = 40):
        super().__init__()
        self.mel = LogMel(sample_rate, bands)
        self.sample_rate, self.dim, self.frame_shift = sample_rate, 2 * bands, self.mel.frame_shift

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return self.mel.output_lengths(lengths)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        mel, lengths = self.mel(waveforms, lengths)
        return torch.cat([mel, mel.diff(dim=1, prepend=mel[:, :1])], -1), lengths
