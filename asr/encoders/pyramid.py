"""A bidirectional LSTM that halves the frames between its layers."""

from __future__ import annotations

from asr.encoders.recurrent import RecurrentEncoder
from asr.encoders.subsampling import FrameStacking


class PyramidBlstm(RecurrentEncoder):
    """Pyramidal BLSTM of Listen, Attend and Spell (Chan et al., arXiv 1508.01211, section 3.1).

    Each of the layers 2 … halvings + 1 reads the frames of the one below in pairs, [h(2t), h(2t + 1)]; after the last
    frame of an odd number comes zero.

    Args:
        input_dim: features of a frame.
        stacking: input frames that are concatenated ahead of the first layer, without overlap.
        halvings: of time, between the lowest layers; the stride is stacking · 2^halvings.

    The others are those of `RecurrentEncoder`.

    Shapes: features (B, T, input_dim), lengths (B,) → hidden (B, T', dim), lengths (B,).
    """

    def __init__(
        self,
        input_dim: int,
        layers: int = 3,
        width: int = 256,
        projection: int = 0,
        stacking: int = 1,
        halvings: int = 2,
        dropout: float = 0.3,
        norm: str = "layer",
        dropout_kind: str = "frame",
        weight_dropout: float = 0.0,
    ):
        rest = dropout, norm, dropout_kind, "none", weight_dropout, halvings
        super().__init__(FrameStacking(input_dim, stacking), layers, width, projection, True, *rest)
