"""Convolutional blocks, a recurrent stack and fully connected layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.encoders.dropout import make_dropout
from asr.encoders.normalization import MaskedBatchNorm, real_frames
from asr.encoders.recurrent import RecurrentEncoder, Tap
from asr.encoders.subsampling import Convolutions
from asr.errors import ConfigError
from asr.featurizers.normalization import frame_mask


class VggBlocks(nn.Module):
    """Blocks of two 3×3 convolutions and max pooling over two frequencies; at the end, max pooling over time.

    Each convolution is followed by layer norm and leaky ReLU.

    Args:
        input_dim: features of a frame.
        channels: of each block.
        time_pooling: frames of which the largest values are kept.
        dropout: of whole channels of an utterance, after each block.

    Shapes: (B, T, D), lengths (B,) → (B, ⌈T / time_pooling⌉, dim), lengths (B,).
    """

    def __init__(self, input_dim: int, channels: Sequence[int], time_pooling: int, dropout: float):
        super().__init__()
        if time_pooling < 1:
            raise ConfigError(f"encoder.time_pooling={time_pooling}: must be 1 or more.")
        if input_dim < 2 ** len(channels):
            raise ConfigError(f"encoder.channels={[*channels]}: {input_dim} features cannot be halved so often.")
        self.blocks = nn.ModuleList()
        self.stride, self.dim, below = time_pooling, input_dim, 1
        for out in channels:
            sizes = [out, out], [(3, 3)] * 2, [(1, 1)] * 2
            block = Convolutions(self.dim, *sizes, "layer", "leaky_relu", input_channels=below)
            self.blocks.append(block)
            self.dim, below = out * (block.frequencies[-1] // 2), out
        self.dropout = make_dropout(dropout)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return (lengths + self.stride - 1) // self.stride

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        block: Any
        for block in self.blocks:
            x, _ = block(x, lengths)
            x = F.max_pool2d(x.unflatten(2, (-1, block.frequencies[-1])), (1, 2))  # (B, T, channels, frequencies)
            x = (x * self.dropout(x.new_ones(x.shape[0], 1, x.shape[2], 1))).flatten(2)
        x = x.masked_fill(~frame_mask(lengths, x.shape[1], x.device)[..., None], -torch.inf)
        x = F.max_pool1d(x.transpose(1, 2), self.stride, ceil_mode=True).transpose(1, 2)
        lengths = self.output_lengths(lengths)
        return x.masked_fill(~frame_mask(lengths, x.shape[1], x.device)[..., None], 0), lengths


class Crdnn(RecurrentEncoder):
    """Convolutional, recurrent, then dense layers, as in SpeechBrain's CRDNN (Ravanelli et al., arXiv 2106.04624).

    Here lengths are respected: no layer reads padding, and batch norm counts real frames only.

    Args:
        input_dim: features of a frame.
        channels: of the convolutional blocks, as in `VggBlocks`.
        time_pooling: frames of which the largest values are kept, ahead of the LSTM.
        dnn_layers: of linear, batch norm, leaky ReLU and dropout; they go on counting the layers for `tap`.
        dnn_width: units of each.
        dropout: as in `RecurrentEncoder`, and after each convolutional block and dense layer.

    The others are those of `RecurrentEncoder`.

    Shapes: features (B, T, input_dim), lengths (B,) → hidden (B, T', dim), lengths (B,).
    """

    def __init__(
        self,
        input_dim: int,
        channels: Sequence[int] = (64, 128),
        time_pooling: int = 4,
        layers: int = 3,
        width: int = 256,
        projection: int = 0,
        bidirectional: bool = True,
        dnn_layers: int = 2,
        dnn_width: int = 512,
        dropout: float = 0.15,
        norm: str = "none",
        dropout_kind: str = "frame",
        residual: str = "none",
        weight_dropout: float = 0.0,
    ):
        rest = dropout, norm, dropout_kind, residual, weight_dropout
        front = VggBlocks(input_dim, channels, time_pooling, dropout)
        super().__init__(front, layers, width, projection, bidirectional, *rest)
        if dnn_layers < 1:
            raise ConfigError(f"encoder.dnn_layers={dnn_layers}: must be 1 or more.")
        dims = [self.dim] + [dnn_width] * dnn_layers
        self.dense = nn.ModuleList(nn.Linear(*pair, bias=False) for pair in pairwise(dims))
        self.dense_norms = nn.ModuleList(MaskedBatchNorm(dnn_width) for _ in self.dense)
        self.dim = dnn_width

    def forward(self, features: Tensor, lengths: Tensor, tap: Tap | None = None) -> tuple[Tensor, Tensor]:
        x, lengths = super().forward(features, lengths, tap)
        real = real_frames(lengths, x.shape[1], x.device)
        for k, (linear, norm) in enumerate(zip(self.dense, self.dense_norms, strict=True)):
            x = F.leaky_relu(norm(linear(x), real))
            x = x * self.dropout(x.new_ones(len(x), 1, x.shape[2])) if self.locked else self.dropout(x)
            if tap is not None:
                x = tap(len(self.layers) + k, x, lengths)
        return x, lengths
