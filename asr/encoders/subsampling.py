"""Fewer frames for the layers above: frame stacking, or strided convolutions over time and frequency."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from asr.encoders.normalization import make_norm, normalize, real_frames
from asr.errors import ConfigError
from asr.featurizers.normalization import frame_mask

ACTIVATIONS = {"relu": nn.ReLU(), "gelu": nn.GELU(), "hardtanh": nn.Hardtanh(0, 20)}


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


class Convolutions(nn.Module):
    """2-D convolutions over time and frequency; normalisation and activation after each, padding masked before each.

    Args:
        input_dim: features of a frame.
        channels: of each convolution.
        kernels: (time, frequency) of each, odd: what lies beyond the edges counts as zero.
        strides: (time, frequency) of each.
        norm: "batch" (of each channel, over the real frames of the batch), "layer" (of each frame, over channels and
            frequencies) or "none".
        activation: "relu", "gelu" or "hardtanh" (clipped to 0…20, as in Deep Speech 2).
        dropout: between the convolutions.
        locked: whether a dropout mask holds for all frames of an utterance.

    Shapes: (B, T, D), lengths (B,) → (B, ⌈T / stride⌉, channels · frequencies), lengths (B,).
    """

    def __init__(
        self,
        input_dim: int,
        channels: Sequence[int],
        kernels: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        norm: str = "none",
        activation: str = "relu",
        dropout: float = 0.0,
        locked: bool = False,
    ):
        super().__init__()
        if not len(channels) == len(kernels) == len(strides) > 0:
            raise ConfigError(
                f"encoder: {len(channels)} channels, {len(kernels)} kernels and {len(strides)} strides: "
                "give one of each for every convolution."
            )
        if any(len(pair) != 2 or min(pair) < 1 for pair in (*kernels, *strides)) or min(channels) < 1:
            raise ConfigError("encoder: kernels and strides are pairs (time, frequency); all sizes must be 1 or more.")
        if any(size % 2 == 0 for kernel in kernels for size in kernel):
            raise ConfigError(f"encoder.kernels={[list(k) for k in kernels]}: sizes must be odd, to have a middle.")
        if activation not in ACTIVATIONS:
            raise ConfigError(f"encoder.activation={activation}: must be one of {', '.join(ACTIVATIONS)}.")
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        below = 1
        for out, (time, frequency), stride in zip(channels, kernels, strides, strict=True):
            padding, steps = (time // 2, frequency // 2), (stride[0], stride[1])
            # a batch norm takes the mean away, and a bias with it
            self.convolutions.append(nn.Conv2d(below, out, (time, frequency), steps, padding, bias=norm != "batch"))
            input_dim = (input_dim - 1) // stride[1] + 1
            self.norms.append(make_norm(norm, out, input_dim))
            below = out
        self.time_strides = [stride[0] for stride in strides]
        self.stride, self.dim = prod(self.time_strides), below * input_dim
        self.activation, self.dropout, self.locked = ACTIVATIONS[activation], nn.Dropout(dropout), locked

    def output_lengths(self, lengths: Tensor) -> Tensor:
        for stride in self.time_strides:
            lengths = (lengths + stride - 1) // stride
        return lengths

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = features[:, :, None]  # (B, T, channels, D)
        for k, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = x.masked_fill(~frame_mask(lengths, x.shape[1], x.device)[..., None, None], 0)
            x = convolution(x.transpose(1, 2)).transpose(1, 2)
            lengths = (lengths + self.time_strides[k] - 1) // self.time_strides[k]
            x = self.activation(normalize(norm, x, real_frames(lengths, x.shape[1], x.device)))
            if k + 1 < len(self.convolutions):
                x = self._dropped(x)
        return x.flatten(2), lengths

    def _dropped(self, x: Tensor) -> Tensor:
        return x * self.dropout(x.new_ones(len(x), 1, *x.shape[2:])) if self.locked else self.dropout(x)


def make_subsampling(kind: str, input_dim: int, stride: int, channels: int) -> FrameStacking | Convolutions:
    """The subsampling of that name: "stack", or "conv", 3×3 convolutions with stride 2 and ReLU."""
    if kind == "stack":
        return FrameStacking(input_dim, stride)
    if kind == "conv":
        if stride < 2 or stride & (stride - 1):
            raise ConfigError(f"encoder.stride={stride}: with subsampling=conv it must be a power of two, 2 or more.")
        layers = stride.bit_length() - 1
        return Convolutions(input_dim, [channels] * layers, [(3, 3)] * layers, [(2, 2)] * layers)
    raise ConfigError(f"encoder.subsampling={kind}: must be 'stack' or 'conv'.")
