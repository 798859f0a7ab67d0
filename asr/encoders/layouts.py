"""Two ways to hold a batch of utterances while recurrent layers run over it: padded, or the real frames alone.

Both go from (B, T, D) to their own shape by `enter`, back by `leave`, run a layer over frames in that shape by `run`,
and `spread` vectors of utterances (B, D) over these frames; `real` are the places of the real frames among them, in
B · T, or `None` where all are real.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from asr.encoders.normalization import real_frames

Weights = Callable[[Any, str], list[Tensor]]
"""A layer and the suffix of a direction ("" or "_reverse") → its weights, in the order of torch.nn.LSTM."""
Memory = dict[Any, tuple[Tensor, Tensor]]
"""Where each LSTM layer stopped in a stream: its hidden vectors and cells."""


class Padded:
    """Frames stay (B, T, D); each direction of an LSTM runs over the padding, too.

    The backward direction runs on utterances reversed within their lengths, so that none begins in its padding. With a
    `memory`, layers of one direction go on where they stopped before.
    """

    def __init__(self, lengths: Tensor, frames: int, device: torch.device, memory: Memory | None = None):
        self.batch, self.lengths, self.frames, self.device = len(lengths), lengths, frames, device
        self.memory: Memory = {} if memory is None else memory

    @cached_property
    def real(self) -> Tensor | None:
        return real_frames(self.lengths, self.frames, self.device)

    @cached_property
    def reversed(self) -> Tensor:
        """Where in B · T each frame goes when its utterance is reversed; done twice, all is as before."""
        frame, end = torch.arange(self.frames)[None, :], self.lengths[:, None]
        backwards = torch.where(frame < end, end - 1 - frame, frame)
        return (torch.arange(self.batch)[:, None] * self.frames + backwards).flatten().to(self.device)

    def enter(self, x: Tensor) -> Tensor:
        return x

    def leave(self, x: Tensor) -> Tensor:
        return x

    def spread(self, x: Tensor) -> Tensor:
        return x[:, None]

    def run(self, layer: Any, x: Tensor, weights: Weights) -> Tensor:
        before = self.memory.get(layer) or _zeros(layer, x, 1, self.batch)
        y, *after = torch.lstm(x, before, weights(layer, ""), True, 1, 0.0, layer.training, False, True)
        if not layer.bidirectional:
            self.memory[layer] = after[0], after[1]
            return y
        zeros = _zeros(layer, x, 1, self.batch)
        backwards = torch.lstm(
            self._turn(x), zeros, weights(layer, "_reverse"), True, 1, 0.0, layer.training, False, True
        )[0]
        return torch.cat([y, self._turn(backwards)], -1)

    def _turn(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, self.reversed).view_as(x)


class Packed:
    """The real frames only, (N, D), in the order of `torch.nn.utils.rnn.PackedSequence`; for LSTM and GRU."""

    real = None

    def __init__(self, lengths: Tensor, frames: int, device: torch.device):
        self.batch, self.lengths, self.frames = len(lengths), lengths, frames
        places = torch.arange(self.batch * frames).view(self.batch, frames, 1)
        packed = pack_padded_sequence(places, lengths, batch_first=True, enforce_sorted=False)
        self.batch_sizes = packed.batch_sizes
        self.places = packed.data[:, 0].to(device, non_blocking=True)

    def enter(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, self.places)

    def leave(self, x: Tensor) -> Tensor:
        padding = x.new_zeros(self.batch * self.frames, x.shape[1])
        return padding.index_copy(0, self.places, x).view(self.batch, self.frames, -1)

    def spread(self, x: Tensor) -> Tensor:
        return x.index_select(0, self.places // self.frames)

    def run(self, layer: Any, x: Tensor, weights: Weights) -> Tensor:
        directions = ["", "_reverse"] if layer.bidirectional else [""]
        flat = [weight for direction in directions for weight in weights(layer, direction)]
        before = _zeros(layer, x, len(directions), self.batch)
        rest = flat, True, 1, 0.0, layer.training, layer.bidirectional
        if isinstance(layer, nn.GRU):
            return torch.gru(x, self.batch_sizes, before[0], *rest)[0]
        return torch.lstm(x, self.batch_sizes, before, *rest)[0]


def _zeros(layer: Any, x: Tensor, directions: int, batch: int) -> tuple[Tensor, Tensor]:
    """The hidden vectors and cells with which a layer begins."""
    hidden = x.new_zeros(directions, batch, layer.proj_size or layer.hidden_size)
    return hidden, x.new_zeros(directions, batch, layer.hidden_size)
