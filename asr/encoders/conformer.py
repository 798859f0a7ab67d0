"""Convolution-augmented transformer."""

from __future__ import annotations

from torch import Tensor, nn
from torchaudio.models.conformer import ConformerLayer

from asr.encoders.dropout import make_dropout
from asr.encoders.normalization import MaskedBatchNorm, make_norm, real_frames
from asr.encoders.recurrent import Tap
from asr.encoders.subsampling import make_subsampling
from asr.errors import ConfigError
from asr.featurizers.normalization import frame_mask


class MaskedConformerLayer(ConformerLayer):
    """torchaudio's layer, with its parameters, whose convolution and batch norm do not see the padding.

    Shapes: x (B, T, D), padding (B, T) booleans, real (N,), the places of the real frames in B · T → (B, T, D).
    """

    def __init__(self, width: int, ffn_dim: int, heads: int, kernel: int, dropout: float, norm: str):
        super().__init__(width, ffn_dim, heads, kernel, dropout)
        self.conv_module.sequential[3] = make_norm(norm, width)

    def forward(self, x: Tensor, padding: Tensor, real: Tensor) -> Tensor:  # type: ignore[override]
        x = x + 0.5 * self.ffn1(x)
        y = self.self_attn_layer_norm(x).transpose(0, 1)
        y, _ = self.self_attn(y, y, y, padding, need_weights=False)
        x = x + self.self_attn_dropout(y.transpose(0, 1))
        x = x + self._convolve(x, padding, real)
        return self.final_layer_norm(x + 0.5 * self.ffn2(x))

    def _convolve(self, x: Tensor, padding: Tensor, real: Tensor) -> Tensor:
        enter, glu, depthwise, norm, activation, leave, dropout = self.conv_module.sequential
        x = glu(enter(self.conv_module.layer_norm(x).transpose(1, 2)))
        x = depthwise(x.masked_fill(padding[:, None], 0)).transpose(1, 2)
        x = norm(x, real) if isinstance(norm, MaskedBatchNorm) else norm(x)
        return dropout(leave(activation(x.transpose(1, 2)))).transpose(1, 2)


class Conformer(nn.Module):
    """Conformer (Gulati et al., arXiv 2005.08100), as in `torchaudio.models.Conformer`, behind a subsampling.

    There is no positional encoding: the convolutions tell the order of frames.

    Args:
        input_dim: features of a frame.
        layers: conformer blocks.
        width: of their input and output; the encoder's `dim`.
        heads: of self-attention; they divide `width`.
        ffn_dim: hidden units of the feed-forward modules.
        kernel: frames under the depthwise convolution, odd.
        subsampling: "stack" (frame stacking) or "conv" (strided 2-D convolutions), ahead of a linear layer.
        stride: input frames per output frame; with "conv" a power of two.
        channels: of the convolutions.
        dropout: of all modules.
        norm: in the convolution module: "batch" (over the real frames of the batch), "layer" or "none".

    Shapes: features (B, T, input_dim), lengths (B,) → hidden (B, T', width), lengths (B,).
    """

    def __init__(
        self,
        input_dim: int,
        layers: int = 8,
        width: int = 144,
        heads: int = 4,
        ffn_dim: int = 576,
        kernel: int = 31,
        subsampling: str = "conv",
        stride: int = 4,
        channels: int = 32,
        dropout: float = 0.1,
        norm: str = "batch",
    ):
        super().__init__()
        if min(layers, heads, width, ffn_dim) < 1 or width % heads:
            sizes = f"layers={layers}, width={width} and ffn_dim={ffn_dim} must be 1 or more"
            raise ConfigError(f"encoder: {sizes}, and heads={heads} divide width={width}.")
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"encoder.kernel={kernel}: must be odd, to have a middle.")
        self.subsampling = make_subsampling(subsampling, input_dim, stride, channels)
        self.stride, self.dim = self.subsampling.stride, width
        self.linear, self.dropout = nn.Linear(self.subsampling.dim, width), make_dropout(dropout)
        self.layers = nn.ModuleList(
            MaskedConformerLayer(width, ffn_dim, heads, kernel, dropout, norm) for _ in range(layers)
        )

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return self.subsampling.output_lengths(lengths)

    def forward(self, features: Tensor, lengths: Tensor, tap: Tap | None = None) -> tuple[Tensor, Tensor]:
        x, lengths = self.subsampling(features, lengths)
        padding = ~frame_mask(lengths, x.shape[1], x.device)
        real = real_frames(lengths, x.shape[1], x.device)
        x = self.dropout(self.linear(x))
        for k, layer in enumerate(self.layers):
            x = layer(x, padding, real)
            if tap is not None:
                x = tap(k, x, lengths)
        return x, lengths
