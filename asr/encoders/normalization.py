"""Normalisation of hidden vectors, by frame or over the real frames of a batch, and where those frames lie."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asr.errors import ConfigError
from asr.featurizers.normalization import frame_mask


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation whose statistics are those of real frames (Ioffe & Szegedy, arXiv 1502.03167).

    Over (B, T, D) it is the sequence-wise normalisation of Deep Speech 2 (arXiv 1512.02595, section 3.2), over
    (B, T, F, C) that of a convolution's channels. A lone value of each unit has no variance: it is normalised by the
    running statistics.

    Shapes: x (B, T, …, D), real (N,), the places of the real frames in B · T → (B, T, …, D), zero in the padding while
    it trains. Without `real`, every frame of x (N, …, D) counts.
    """

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if not self.training:
            return super().forward(x.reshape(-1, self.num_features)).view_as(x)
        rows = x if real is None else x.flatten(0, 1)
        frames = rows if real is None else rows.index_select(0, real)
        values = frames.reshape(-1, self.num_features)
        if len(values) > 1:
            y = super().forward(values).view_as(frames)
        else:
            statistics = self.running_mean, self.running_var
            y = nn.functional.batch_norm(values, *statistics, self.weight, self.bias, eps=self.eps).view_as(frames)
        if real is None:
            return y
        # each place is met once: what index_copy does, and faster
        return torch.zeros_like(rows, dtype=y.dtype).index_add_(0, real, y).view_as(x)


def make_norm(kind: str, units: int, frequencies: int = 0) -> nn.Module:
    """The normalisation of that name, "layer", "batch" or "none", for (…, units) or (…, units, frequencies)."""
    if kind == "layer":
        return nn.LayerNorm([units, frequencies] if frequencies else units)
    if kind == "batch":
        return MaskedBatchNorm(units)
    if kind == "none":
        return nn.Identity()
    raise ConfigError(f"encoder: '{kind}' is no normalisation: choose 'layer', 'batch' or 'none'.")


def real_frames(lengths: Tensor, frames: int, device: torch.device) -> Tensor:
    """(B,) lengths on the CPU → (N,) places of the real frames in B · T, found without waiting for the device."""
    return frame_mask(lengths, frames).flatten().nonzero()[:, 0].to(device, non_blocking=True)
