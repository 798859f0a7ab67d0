"""Fewer frames for the layers above: frame stacking, or strided convolutions over time and frequency."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.encoders.dropout import make_dropout
from asr.encoders.normalization import MaskedBatchNorm, make_norm, real_frames
from asr.errors import ConfigError
from asr.featurizers.normalization import frame_mask

ACTIVATIONS: dict[str, Any] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "hardtanh": partial(F.hardtanh, min_val=0.0, max_val=20.0),
}


class Windows:
    """The frames of a stream under windows of `size` frames, one window every `stride` frames.

    Args:
        before, after: frames of zeros ahead of the stream and past its end.
    """

    def __init__(self, size: int, stride: int = 1, before: int = 0, after: int = 0):
        self.size, self.stride, self.before, self.after = size, stride, before, after
        self.kept: Tensor | None = None

    def take(self, x: Tensor, last: bool) -> Tensor:
        """The next frames (B, T, …), the last ones or not → those (B, T', …) that whole new windows cover, or none."""
        kept = x.new_zeros(len(x), self.before, *x.shape[2:]) if self.kept is None else self.kept
        x = torch.cat([kept, x, x.new_zeros(len(x), self.after if last else 0, *x.shape[2:])], 1)
        windows = max(0, (x.shape[1] - self.size) // self.stride + 1)
        self.kept = x[:, windows * self.stride :]
        return x[:, : (windows - 1) * self.stride + self.size if windows else 0]


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
        features = F.pad(features, (0, 0, 0, -features.shape[1] % self.stride))
        stacked = features.reshape(features.shape[0], -1, self.dim)
        return stacked, self.output_lengths(lengths)

    def start(self) -> list[Windows]:
        """The state of a stream of which nothing was heard."""
        return [Windows(self.stride, self.stride, after=self.stride - 1)]

    def step(self, features: Tensor, state: list[Windows], last: bool) -> Tensor:
        """The next features (B, T, D) of a stream → (B, T', dim), all that they complete; the state is changed."""
        return state[0].take(features, last).reshape(len(features), -1, self.dim)


class Convolutions(nn.Module):
    """2-D convolutions over time and frequency; normalisation and activation after each, padding masked before each.

    Args:
        input_dim: features of a frame.
        channels: of each convolution.
        kernels: (time, frequency) of each, odd: what lies beyond the edges counts as zero.
        strides: (time, frequency) of each.
        norm: "batch" (of each channel, over the real frames of the batch), "layer" (of each frame, over channels and
            frequencies) or "none".
        activation: "relu", "leaky_relu", "gelu" or "hardtanh" (clipped to 0…20, as in Deep Speech 2).
        dropout: between the convolutions.
        locked: whether a dropout mask holds for all frames of an utterance.
        input_channels: into which the features are split.

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
        input_channels: int = 1,
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
        self.input_channels, self.time_strides = input_channels, [stride[0] for stride in strides]
        self.frequencies: list[int] = []
        below, frequencies = input_channels, input_dim // input_channels
        for out, (time, frequency), (step, frequency_step) in zip(channels, kernels, strides, strict=True):
            sizes = (time, frequency), (step, frequency_step), (time // 2, frequency // 2)
            # a batch norm takes the mean away, and a bias with it
            self.convolutions.append(nn.Conv2d(below, out, *sizes, bias=norm != "batch"))
            frequencies = (frequencies - 1) // frequency_step + 1
            self.norms.append(make_norm(norm, out, frequencies))
            self.frequencies.append(frequencies)
            below = out
        self.stride, self.dim = prod(self.time_strides), below * frequencies
        self.dropout = make_dropout(dropout, "conv_dropout")
        self.activation, self.locked = ACTIVATIONS[activation], locked

    def output_lengths(self, lengths: Tensor) -> Tensor:
        for stride in self.time_strides:
            lengths = (lengths + stride - 1) // stride
        return lengths

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = features.unflatten(2, (self.input_channels, -1)).transpose(2, 3)  # (B, T, frequencies, channels)
        masked = False
        for k, convolution in enumerate(self.convolutions):
            if not masked:
                x = x.masked_fill(~frame_mask(lengths, x.shape[1], x.device)[..., None, None], 0)
            x = convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # channels last: the faster layout on a CPU
            lengths = (lengths + self.time_strides[k] - 1) // self.time_strides[k]
            x = self._finished(k, x, lengths)
            norm = self.norms[k]
            masked = norm.training and isinstance(norm, MaskedBatchNorm)  # zeros stay zeros from there
        return x.transpose(2, 3).flatten(2), lengths

    def start(self) -> list[Windows]:
        """The state of a stream of which nothing was heard."""
        convolutions: Any = self.convolutions
        pairs = [(c.kernel_size[0], c.stride[0]) for c in convolutions]
        return [Windows(size, stride, size // 2, size // 2) for size, stride in pairs]

    def step(self, features: Tensor, state: list[Windows], last: bool) -> Tensor:
        """The next features (B, T, D) of a stream → (B, T', dim), all that they complete; the state is changed."""
        x = features.unflatten(2, (self.input_channels, -1)).transpose(2, 3)
        convolution: Any
        for k, (convolution, windows) in enumerate(zip(self.convolutions, state, strict=True)):
            x = windows.take(x, last)
            if x.shape[1]:
                given = convolution.weight, convolution.bias, convolution.stride, (0, convolution.padding[1])
                x = F.conv2d(x.permute(0, 3, 1, 2), *given).permute(0, 2, 3, 1)
            else:
                x = x.new_zeros(len(x), 0, self.frequencies[k], convolution.out_channels)
            x = self._finished(k, x, torch.full((len(x),), x.shape[1]))
        return x.transpose(2, 3).flatten(2)

    def _finished(self, k: int, x: Tensor, lengths: Tensor) -> Tensor:
        """Normalise, activate and, below another convolution, drop the output (B, T, frequencies, channels) of one."""
        norm = self.norms[k]
        if isinstance(norm, MaskedBatchNorm):
            x = norm(x, real_frames(lengths, x.shape[1], x.device))
        else:
            x = norm(x.transpose(2, 3)).transpose(2, 3)
        x = self.activation(x)
        if k + 1 == len(self.convolutions):
            return x
        return x * self.dropout(x.new_ones(x.shape[0], 1, *x.shape[2:])) if self.locked else self.dropout(x)


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
