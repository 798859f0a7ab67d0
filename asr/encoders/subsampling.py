"""Fewer frames for the recurrent layers: frame stacking, or strided convolutions over time and frequency."""

from __future__ import annotations

from torch import Tensor, nn

from asr.errors import ConfigError
from asr.featurizers.normalization import frame_mask


class FrameStacking(nn.Module):
    """Concatenate `stride` neighbouring frames into one; frames past the end count as zero.

    Shapes: (B, T, D), lengths (B,) → (B, ⌈T / stride⌉, stride · D), lengths (B,).
    """

    def __init__(self, input_dim: int, stride: int):
        super().__init__()
        if stride < 1:
            raise ConfigError(f"encoder.stride={stride}: must be 1 or more.")
        self.stride, self.dim = stride, input_dim * stride

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return (lengths + self.stride - 1) // self.stride

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        mask = frame_mask(lengths, features.shape[1], features.device)
        features = features.masked_fill(~mask[..., None], 0)
        features = nn.functional.pad(features, (0, 0, 0, -features.shape[1] % self.stride))
        stacked = features.reshape(features.shape[0], -1, self.dim)
        return stacked, self.output_lengths(lengths)


class ConvSubsampling(nn.Module):
    """3×3 convolutions with stride 2 in time and frequency, ReLU after each; padding is masked before each.

    Shapes: (B, T, D), lengths (B,) → (B, ⌈T / stride⌉, channels · ⌈D / stride⌉), lengths (B,).
    """

    def __init__(self, input_dim: int, stride: int, channels: int):
        super().__init__()
        if stride < 2 or stride & (stride - 1):
            raise ConfigError(f"encoder.stride={stride}: with subsampling=conv it must be a power of two, 2 or more.")
        layers = stride.bit_length() - 1
        self.convolutions = nn.ModuleList(
            nn.Conv2d(1 if k == 0 else channels, channels, 3, stride=2, padding=1) for k in range(layers)
        )
        for _ in range(layers):
            input_dim = (input_dim + 1) // 2
        self.stride, self.dim = stride, input_dim * channels

    def output_lengths(self, lengths: Tensor) -> Tensor:
        for _ in self.convolutions:
            lengths = (lengths + 1) // 2
        return lengths

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = features[:, None]  # (B, channels, T, D)
        for convolution in self.convolutions:
            x = x.masked_fill(~frame_mask(lengths, x.shape[2], x.device)[:, None, :, None], 0)
            x = convolution(x).relu()
            lengths = (lengths + 1) // 2
        return x.transpose(1, 2).flatten(2), lengths


def make_subsampling(kind: str, input_dim: int, stride: int, channels: int) -> FrameStacking | ConvSubsampling:
    """The subsampling of that name, "stack" or "conv"."""
    if kind == "stack":
        return FrameStacking(input_dim, stride)
    if kind == "conv":
        return ConvSubsampling(input_dim, stride, channels)
    raise ConfigError(f"encoder.subsampling={kind}: must be 'stack' or 'conv'.")
