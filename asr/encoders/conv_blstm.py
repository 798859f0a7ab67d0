"""Normalised 2-D convolutions below a bidirectional LSTM: the Deep Speech 2 shape."""

from __future__ import annotations

from collections.abc import Sequence

from asr.encoders.recurrent import RecurrentEncoder
from asr.encoders.subsampling import Convolutions


class ConvBlstm(RecurrentEncoder):
    """2-D convolutions with normalisation, then a bidirectional LSTM (Deep Speech 2, Amodei et al., arXiv 1512.02595).

    Args:
        input_dim: features of a frame.
        channels: of each convolution.
        kernels: (time, frequency) of each, odd.
        strides: (time, frequency) of each.
        conv_norm: after each convolution: "batch", "layer" or "none", as in `Convolutions`.
        activation: after that: "relu", "gelu" or "hardtanh" (clipped to 0…20).
        conv_dropout: between the convolutions, of the same `dropout_kind` as between the layers.

    The others are those of `RecurrentEncoder`. The paper's own sizes are in `conf/encoder/conv_blstm_ds2.yaml`.

    Shapes: features (B, T, input_dim), lengths (B,) → hidden (B, T', dim), lengths (B,).
    """

    def __init__(
        self,
        input_dim: int,
        channels: Sequence[int] = (32, 32),
        kernels: Sequence[Sequence[int]] = ((3, 3), (3, 3)),
        strides: Sequence[Sequence[int]] = ((2, 2), (2, 2)),
        conv_norm: str = "batch",
        activation: str = "relu",
        conv_dropout: float = 0.0,
        layers: int = 3,
        width: int = 256,
        projection: int = 0,
        bidirectional: bool = True,
        dropout: float = 0.3,
        norm: str = "layer",
        dropout_kind: str = "frame",
        residual: str = "none",
        weight_dropout: float = 0.0,
    ):
        locked = dropout_kind == "locked"
        super().__init__(
            Convolutions(input_dim, channels, kernels, strides, conv_norm, activation, conv_dropout, locked),
            layers,
            width,
            projection,
            bidirectional,
            dropout,
            norm,
            dropout_kind,
            residual,
            weight_dropout,
        )
