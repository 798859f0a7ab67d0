"""Stacks of recurrent layers over packed sequences: bidirectional LSTM and GRU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from asr.encoders.subsampling import make_subsampling
from asr.errors import ConfigError

Tap = Callable[[int, Tensor, Tensor], Tensor]


class Blstm(nn.Module):
    """Bidirectional long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

    In every layer and direction, for frame t with input x and the previous hidden vector h and cell c:

        i = σ(W_i x + U_i h + b_i)        input gate
        f = σ(W_f x + U_f h + b_f)        forget gate
        g = tanh(W_g x + U_g h + b_g)     candidate
        o = σ(W_o x + U_o h + b_o)        output gate
        c' = f ∘ c + i ∘ g                cell
        h' = o ∘ tanh(c')                 hidden; with a projection, h' = P (o ∘ tanh(c'))

    The backward direction begins at each utterance's own last frame, never in its padding. On CUDA the layers run on
    packed sequences (cuDNN); on a CPU each direction runs as a plain LSTM over the padded batch, the backward one on
    utterances reversed within their lengths: the same numbers, several times faster (oneDNN has no packed kernel).

    Args:
        input_dim: features of a frame.
        layers: recurrent layers.
        width: units of a layer and direction.
        projection: if above 0, each direction's output is projected to so many units (LSTMP, Sak et al. 2014).
        bidirectional: whether there is a backward direction.
        subsampling: "stack" (frame stacking) or "conv" (strided 2-D convolutions), ahead of the layers.
        stride: input frames per output frame; with "conv" a power of two.
        channels: of the convolutions.
        dropout: ahead of each layer and after the last.
        layer_norm: normalise the input of each layer, and the output of the last, over its units.

    Shapes: features (B, T, input_dim), lengths (B,) → hidden (B, T', dim), lengths (B,).
    """

    cell: Any = nn.LSTM

    def __init__(
        self,
        input_dim: int,
        layers: int = 3,
        width: int = 256,
        projection: int = 0,
        bidirectional: bool = True,
        subsampling: str = "conv",
        stride: int = 4,
        channels: int = 32,
        dropout: float = 0.3,
        layer_norm: bool = True,
    ):
        super().__init__()
        if layers < 1 or width < 1:
            raise ConfigError(f"encoder: layers={layers} and width={width} must be 1 or more.")
        if not 0 <= projection < width:
            raise ConfigError(f"encoder.projection={projection}: must be 0 (none) or below width={width}.")
        self.subsampling = make_subsampling(subsampling, input_dim, stride, channels)
        self.stride = self.subsampling.stride
        self.dim = (projection or width) * (1 + bidirectional)
        options = {"proj_size": projection} if projection else {}
        dims = [self.subsampling.dim] + [self.dim] * layers
        self.layers = nn.ModuleList(
            self.cell(dim, width, batch_first=True, bidirectional=bidirectional, **options) for dim in dims[:-1]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) if layer_norm else nn.Identity() for dim in dims)
        self.dropout = nn.Dropout(dropout)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return self.subsampling.output_lengths(lengths)

    def forward(self, features: Tensor, lengths: Tensor, tap: Tap | None = None) -> tuple[Tensor, Tensor]:
        x, lengths = self.subsampling(features, lengths)
        run = self._run_packed if x.device.type != "cpu" or not self._has_plain_kernel() else self._run_plain
        return run(x, lengths, tap), lengths

    def _run_packed(self, x: Tensor, lengths: Tensor, tap: Tap | None) -> Tensor:
        frames = x.shape[1]
        # normalisation and dropout work on the packed frames: there is no padding to skip
        packed = _pack(x, lengths)
        packed = _replace(packed, self.dropout(self.norms[0](packed.data)))
        for k, layer in enumerate(self.layers):
            packed, _ = layer(packed)
            packed = _replace(packed, self.dropout(self.norms[k + 1](packed.data)))
            if tap is not None:
                hidden, _ = pad_packed_sequence(packed, batch_first=True, total_length=frames)
                packed = _pack(tap(k, hidden, lengths), lengths)
        return pad_packed_sequence(packed, batch_first=True, total_length=frames)[0]

    def _run_plain(self, x: Tensor, lengths: Tensor, tap: Tap | None) -> Tensor:
        frame = torch.arange(x.shape[1])[None, :]
        end = lengths[:, None]
        backwards = torch.where(frame < end, end - 1 - frame, frame)
        rows = (torch.arange(len(x))[:, None] * x.shape[1] + backwards).flatten()

        def turn(x: Tensor) -> Tensor:
            """Reverse each utterance within its length; done twice, it is as before."""
            return x.flatten(0, 1).index_select(0, rows).view_as(x)

        x = self.dropout(self.norms[0](x))
        for k, layer in enumerate(self.layers):
            outputs = [_one_direction(layer, x, "")]
            if layer.bidirectional:
                outputs.append(turn(_one_direction(layer, turn(x), "_reverse")))
            x = self.dropout(self.norms[k + 1](torch.cat(outputs, -1)))
            if tap is not None:
                x = tap(k, x, lengths)
        return x

    def _has_plain_kernel(self) -> bool:
        """Whether the CPU has a kernel for these layers that is faster than the packed one: LSTM without projection."""
        return self.cell is nn.LSTM and not self.layers[0].proj_size


class Gru(Blstm):
    """Gated recurrent units (Cho et al. 2014, in cuDNN's form), bidirectional by default; options as in `Blstm`.

        r = σ(W_r x + U_r h + b_r)                reset gate
        z = σ(W_z x + U_z h + b_z)                update gate
        n = tanh(W_n x + b_n + r ∘ (U_n h + b))   candidate
        h' = (1 - z) ∘ n + z ∘ h                  hidden

    There is no projection: `torch.nn.GRU` has none.
    """

    cell = nn.GRU

    def __init__(
        self,
        input_dim: int,
        layers: int = 3,
        width: int = 256,
        bidirectional: bool = True,
        subsampling: str = "conv",
        stride: int = 4,
        channels: int = 32,
        dropout: float = 0.3,
        layer_norm: bool = True,
    ):
        super().__init__(input_dim, layers, width, 0, bidirectional, subsampling, stride, channels, dropout, layer_norm)


def _one_direction(layer: Any, x: Tensor, suffix: str) -> Tensor:
    """(B, T, D) → (B, T, H): one direction of an LSTM layer, on the layer's own weights."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    weights = [getattr(layer, name + suffix) for name in names]
    zeros = x.new_zeros(1, x.shape[0], layer.hidden_size)
    return torch.lstm(x, (zeros, zeros), weights, True, 1, 0.0, layer.training, False, True)[0]


def _pack(x: Tensor, lengths: Tensor) -> PackedSequence:
    return pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)


def _replace(packed: PackedSequence, data: Tensor) -> PackedSequence:
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
