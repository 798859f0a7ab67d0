"""Feature normalisation to zero mean and unit variance, by global or by utterance statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def frame_mask(lengths: Tensor, frames: int, device: torch.device | str | None = None) -> Tensor:
    """(B, T) booleans: true where a frame is real, false where it is padding."""
    lengths = lengths.to(device, non_blocking=True)
    return torch.arange(frames, device=device)[None, :] < lengths[:, None]


class GlobalNorm(nn.Module):
    """Normalise each feature by its mean and standard deviation over the training set.

    Shapes: features (B, T, D), lengths (B,) → (B, T, D). The statistics are buffers, saved with the weights.
    """

    needs_statistics = True
    mean: Tensor
    std: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1e-5))

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        return (features - self.mean) / self.std


class UtteranceNorm(nn.Module):
    """Normalise each feature by its mean and standard deviation over the utterance's own frames.

    It needs the whole utterance, so a model that uses it cannot stream.
    """

    needs_statistics = False

    def __init__(self, dim: int):
        super().__init__()

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        mask = frame_mask(lengths, features.shape[1], features.device)[..., None]
        count = mask.sum(1, keepdim=True)
        mean = features.masked_fill(~mask, 0).sum(1, keepdim=True) / count
        variance = (features - mean).masked_fill(~mask, 0).square().sum(1, keepdim=True) / count
        return (features - mean) / (variance + 1e-5).sqrt()
