"""A unidirectional LSTM for streams: it hears a few frames ahead, by a row convolution."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.encoders.layouts import Memory, Padded
from asr.encoders.recurrent import RecurrentEncoder, Tap
from asr.encoders.subsampling import Windows, make_subsampling
from asr.errors import ConfigError
from asr.featurizers.normalization import frame_mask


@dataclass
class LstmState:
    """Where an `Lstm` stopped in a stream; `step` and `finish` change it."""

    subsampling: list[Windows]
    ahead: Windows
    memory: Memory = field(default_factory=dict)


class Lstm(RecurrentEncoder):
    """Unidirectional LSTM with a row convolution on top (Deep Speech 2, arXiv 1512.02595, section 3.7).

    The hidden vectors h of the last layer become r(t) = Σ_j w_j ∘ h(t + j), j = 0 … lookahead, where frames past the
    end count as zero. Output frame t is known once (t + lookahead + 1) · stride input frames were heard; so many
    frames are the latency. In evaluation mode a stream gives what `forward` gives, however it is cut:

        state = encoder.start()
        hidden = [encoder.step(piece, state) for piece in pieces] + [encoder.finish(state)]

    Args:
        input_dim: features of a frame.
        lookahead: output frames that each output frame hears beyond its own; without any there is no row convolution.
        subsampling: "stack" (frame stacking) or "conv" (strided 2-D convolutions), ahead of the layers.
        stride: input frames per output frame; with "conv" a power of two.
        channels: of the convolutions.

    The others are those of `RecurrentEncoder`.

    Shapes: features (B, T, input_dim), lengths (B,) → hidden (B, T', dim), lengths (B,).
    """

    def __init__(
        self,
        input_dim: int,
        layers: int = 3,
        width: int = 512,
        projection: int = 0,
        lookahead: int = 5,
        subsampling: str = "conv",
        stride: int = 4,
        channels: int = 32,
        dropout: float = 0.3,
        norm: str = "layer",
        dropout_kind: str = "frame",
        residual: str = "none",
        weight_dropout: float = 0.0,
    ):
        if lookahead < 0:
            raise ConfigError(f"encoder.lookahead={lookahead}: must be 0 or more.")
        front = make_subsampling(subsampling, input_dim, stride, channels)
        rest = dropout, norm, dropout_kind, residual, weight_dropout
        super().__init__(front, layers, width, projection, False, *rest)
        self.input_dim, self.lookahead = input_dim, lookahead
        self.row = nn.Conv1d(self.dim, self.dim, lookahead + 1, groups=self.dim, bias=False) if lookahead else None

    def forward(self, features: Tensor, lengths: Tensor, tap: Tap | None = None) -> tuple[Tensor, Tensor]:
        hidden, lengths = super().forward(features, lengths, tap)
        hidden = hidden.masked_fill(~frame_mask(lengths, hidden.shape[1], hidden.device)[..., None], 0)
        return self._ahead(F.pad(hidden, (0, 0, 0, self.lookahead))), lengths

    def start(self) -> LstmState:
        """The state of a stream of which nothing was heard."""
        return LstmState(self.subsampling.start(), Windows(self.lookahead + 1, after=self.lookahead))

    def step(self, features: Tensor, state: LstmState, tap: Tap | None = None) -> Tensor:
        """The next features (1, T, input_dim) of a stream → hidden (1, T', dim), all that they complete."""
        return self._step(features, state, tap, last=False)

    def finish(self, state: LstmState, tap: Tap | None = None) -> Tensor:
        """End the stream: its last hidden vectors (1, T', dim)."""
        parameter = next(self.parameters())
        return self._step(parameter.new_zeros(1, 0, self.input_dim), state, tap, last=True)

    @torch.no_grad()
    def _step(self, features: Tensor, state: LstmState, tap: Tap | None, last: bool) -> Tensor:
        x = self.subsampling.step(features, state.subsampling, last)
        if x.shape[1]:
            lengths = torch.tensor([x.shape[1]])
            x, _ = self._run(Padded(lengths, x.shape[1], x.device, state.memory), x, tap)
        else:
            x = x.new_zeros(1, 0, self.dim)
        x = state.ahead.take(x, last)
        return self._ahead(x) if x.shape[1] else x

    def _ahead(self, hidden: Tensor) -> Tensor:
        """(B, T + lookahead, dim) → (B, T, dim)."""
        return hidden if self.row is None else self.row(hidden.transpose(1, 2)).transpose(1, 2)
