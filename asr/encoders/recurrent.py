"""Stacks of recurrent layers over a subsampling front end: bidirectional LSTM and GRU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from asr.encoders.dropout import make_dropout
from asr.encoders.layouts import Packed, Padded
from asr.encoders.normalization import MaskedBatchNorm, make_norm
from asr.encoders.subsampling import FrameStacking, make_subsampling
from asr.errors import ConfigError

Tap = Callable[[int, Tensor, Tensor], Tensor]


class RecurrentEncoder(nn.Module):
    """A subsampling front end, then a stack of recurrent layers: what the recurrent encoders share.

    On CUDA the layers run on packed sequences (cuDNN); on a CPU each direction runs as a plain LSTM over the padded
    batch: the same numbers, several times faster (oneDNN has no packed kernel), and what ONNX can hold.

    Args:
        subsampling: features → frames of the first layer; has `dim`, `stride` and `output_lengths`.
        layers: recurrent layers.
        width: units of a layer and direction.
        projection: if above 0, each direction's output is projected to so many units (LSTMP, Sak et al. 2014).
        bidirectional: whether there is a backward direction.
        dropout: ahead of each layer and after the last; with `residual`, of what a layer adds.
        norm: the input of each layer and the output of the last are normalised: "layer" (over the units of a frame),
            "batch" (each unit over the real frames of the batch, Deep Speech 2, arXiv 1512.02595) or "none"; with
            `residual`, what a layer adds is, and the sum is not.
        dropout_kind: "frame" (anew for each frame) or "locked" (one mask for all frames of an utterance, Gal &
            Ghahramani, arXiv 1512.05287).
        residual: what a layer above the first hands on, with input x and output y: "none" (y), "add" (x + y; He et al.,
            arXiv 1512.03385) or "highway" (g ∘ y + (1 - g) ∘ x with g = σ(W x + b), where b begins at -1; Srivastava
            et al., arXiv 1505.00387).
        weight_dropout: of the recurrent matrices in training, one mask for all frames of a batch (DropConnect, Merity
            et al., arXiv 1708.02182).
        halvings: so many layers, from the first, hand on their frames in pairs, concatenated; only without residual.
    """

    cell: Any = nn.LSTM

    def __init__(
        self,
        subsampling: Any,
        layers: int,
        width: int,
        projection: int = 0,
        bidirectional: bool = True,
        dropout: float = 0.0,
        norm: str = "layer",
        dropout_kind: str = "frame",
        residual: str = "none",
        weight_dropout: float = 0.0,
        halvings: int = 0,
    ):
        super().__init__()
        if layers < 1 or width < 1:
            raise ConfigError(f"encoder: layers={layers} and width={width} must be 1 or more.")
        if not 0 <= projection < width:
            raise ConfigError(f"encoder.projection={projection}: must be 0 (none) or below width={width}.")
        if dropout_kind not in ("frame", "locked"):
            raise ConfigError(f"encoder.dropout_kind={dropout_kind}: must be 'frame' or 'locked'.")
        if residual not in ("none", "add", "highway"):
            raise ConfigError(f"encoder.residual={residual}: must be 'none', 'add' or 'highway'.")
        if not 0 <= halvings < layers:
            raise ConfigError(f"encoder.halvings={halvings}: must be 0 or more, and below layers={layers}.")
        self.subsampling = subsampling
        self.dim = (projection or width) * (1 + bidirectional)
        self.pairs, self.halvings = FrameStacking(self.dim, 2), halvings
        self.stride = subsampling.stride * 2**halvings
        options = {"proj_size": projection} if projection else {}
        dims = [subsampling.dim] + [self.dim] * layers
        self.layers = nn.ModuleList(
            self.cell(dim * (1 + (0 < k <= halvings)), width, batch_first=True, bidirectional=bidirectional, **options)
            for k, dim in enumerate(dims[:-1])
        )
        self.norms = nn.ModuleList(make_norm(norm, dim) for dim in dims)
        self.gates = nn.ModuleList(nn.Linear(self.dim, self.dim) for _ in dims[2:] if residual == "highway")
        for gate in self.gates:
            nn.init.constant_(gate.bias, -1.0)  # type: ignore[arg-type]
        self.dropout = make_dropout(dropout)
        for layer in self.layers:  # each has its own, so that it rests where the layer is frozen
            layer.weight_dropout = make_dropout(weight_dropout, "weight_dropout")
        self.locked, self.residual = dropout_kind == "locked", residual

    def output_lengths(self, lengths: Tensor) -> Tensor:
        lengths = self.subsampling.output_lengths(lengths)
        for _ in range(self.halvings):
            lengths = self.pairs.output_lengths(lengths)
        return lengths

    def forward(self, features: Tensor, lengths: Tensor, tap: Tap | None = None) -> tuple[Tensor, Tensor]:
        x, lengths = self.subsampling(features, lengths)
        return self._run(self._layout(x, lengths), x, tap)

    def _layout(self, x: Tensor, lengths: Tensor) -> Padded | Packed:
        plain = x.device.type == "cpu" and self.cell is nn.LSTM and not self.layers[0].proj_size
        plain = plain or torch.onnx.is_in_onnx_export()
        return (Padded if plain else Packed)(lengths, x.shape[1], x.device)

    def _run(self, layout: Padded | Packed, x: Tensor, tap: Tap | None = None) -> tuple[Tensor, Tensor]:
        """All layers over (B, T, D), held in this layout → hidden (B, T', dim), lengths (B,)."""
        x = self._finished(0, layout.enter(x), layout)
        for k, layer in enumerate(self.layers):
            if 0 < k <= self.halvings:
                x, lengths = self.pairs(layout.leave(x), layout.lengths)
                layout = self._layout(x, lengths)
                x = layout.enter(x)
            y = self._finished(k + 1, layout.run(layer, x, self._weights), layout)
            if k == 0 or self.residual == "none":
                x = y
            elif self.residual == "add":
                x = x + y
            else:
                x = x + self.gates[k - 1](x).sigmoid() * (y - x)
            if tap is not None:
                x = layout.enter(tap(k, layout.leave(x), layout.lengths))
        return layout.leave(x), layout.lengths

    def _finished(self, k: int, x: Tensor, layout: Padded | Packed) -> Tensor:
        """Normalise and drop what goes into layer k."""
        norm = self.norms[k]
        x = norm(x, layout.real) if isinstance(norm, MaskedBatchNorm) else norm(x)
        if not (self.locked and self.training):
            return self.dropout(x)
        return x * layout.spread(self.dropout(x.new_ones(layout.batch, x.shape[-1])))

    def _weights(self, layer: Any, suffix: str) -> list[Tensor]:
        names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"] + ["weight_hr_l0"] * bool(layer.proj_size)
        weights = [getattr(layer, name + suffix) for name in names]
        weights[1] = layer.weight_dropout(weights[1])
        return weights


class Blstm(RecurrentEncoder):
    """Bidirectional long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

    In every layer and direction, for frame t with input x and the previous hidden vector h and cell c:

        i = σ(W_i x + U_i h + b_i)        input gate
        f = σ(W_f x + U_f h + b_f)        forget gate
        g = tanh(W_g x + U_g h + b_g)     candidate
        o = σ(W_o x + U_o h + b_o)        output gate
        c' = f ∘ c + i ∘ g                cell
        h' = o ∘ tanh(c')                 hidden; with a projection, h' = P (o ∘ tanh(c'))

    The backward direction begins at each utterance's own last frame, never in its padding.

    Args:
        input_dim: features of a frame.
        subsampling: "stack" (frame stacking) or "conv" (strided 2-D convolutions), ahead of the layers.
        stride: input frames per output frame; with "conv" a power of two.
        channels: of the convolutions.
        layer_norm: normalise the input of each layer, and the output of the last, over its units.

    The others are those of `RecurrentEncoder`.

    Shapes: features (B, T, input_dim), lengths (B,) → hidden (B, T', dim), lengths (B,).
    """

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
        dropout_kind: str = "frame",
        residual: str = "none",
        weight_dropout: float = 0.0,
    ):
        super().__init__(
            make_subsampling(subsampling, input_dim, stride, channels),
            layers,
            width,
            projection,
            bidirectional,
            dropout,
            "layer" if layer_norm else "none",
            dropout_kind,
            residual,
            weight_dropout,
        )


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
        dropout_kind: str = "frame",
        residual: str = "none",
        weight_dropout: float = 0.0,
    ):
        rest = dropout, layer_norm, dropout_kind, residual, weight_dropout
        super().__init__(input_dim, layers, width, 0, bidirectional, subsampling, stride, channels, *rest)
