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
    """Frames stay (B, T, D); each direction of a layer runs over the padding, too.

    The backward direction runs on utterances reversed within their lengths, so that none begins in its padding. With a
    `memory`, layers of one direction go on where they stopped before.
    """

    def __init__(self, lengths: Tensor, frames: int, device: torch.device, memory: Memory | None = None):
        # of the shape, which stays open when the model is traced
        self.batch, self.lengths, self.frames, self.device = lengths.shape[0], lengths, frames, device
        self.memory: Memory = {} if memory is None else memory

    @cached_property
    def real(self) -> Tensor | None:
        return real_frames(self.lengths, self.frames, self.device)

    @cached_property
    def reversed(self) -> Tensor:
        """Where in B · T each frame goes when its utterance is reversed; done twice, all is as before."""
        frame, end = torch.arange(self.frames)[None, :], self.lengths[:, None]
        backwards = torch.where(frame < end, end - 1 - frame, frame)
        places = torch.arange(self.batch)[:, None] * self.frames + backwards
        return places.flatten().to(self.device, non_blocking=True)

    def enter(self, x: Tensor) -> Tensor:
        return x

    def leave(self, x: Tensor) -> Tensor:
        return x

    def spread(self, x: Tensor) -> Tensor:
        return x[:, None]

    def run(self, layer: Any, x: Tensor, weights: Weights) -> Tensor:
        before = self.memory.get(layer) or _zeros(layer, x, 1, self.batch)
        y, *after = _one_direction(layer, x, before, weights(layer, ""))
        if not layer.bidirectional:
            self.memory[layer] = after[0], after[-1]
            return y
        backwards = _one_direction(layer, self._turn(x), _zeros(layer, x, 1, self.batch), weights(layer, "_reverse"))
        return torch.cat([y, self._turn(backwards[0])], -1)

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


def _one_direction(layer: Any, x: Tensor, before: tuple[Tensor, Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
    """One direction of a layer over (B, T, D): its output, and its hidden vectors and cells at the end."""
    rest = True, 1, 0.0, layer.training, False, True
    x = for_kernel(x)
    if isinstance(layer, nn.GRU):
        return torch.gru(x, before[0], weights, *rest)
    if not layer.proj_size or not torch.onnx.is_in_onnx_export():
        return torch.lstm(x, before, weights, *rest)
    # ONNX knows no projection: the recurrent matrix takes it in
    *weights, projection = weights
    weights[1] = weights[1] @ projection
    y, *after = torch.lstm(x, (before[1], before[1]), weights, *rest)
    return y @ projection.T, *after


def for_kernel(x: Tensor) -> Tensor:
    """What an LSTM is given, as autocast casts it: on a CPU, torch chooses the kernel before, and may lack it."""
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return x.to(torch.get_autocast_dtype("cpu"))
    return x


def _zeros(layer: Any, x: Tensor, directions: int, batch: int) -> tuple[Tensor, Tensor]:
    """The hidden vectors and cells with which a layer begins."""
    hidden = x.new_zeros(directions, batch, layer.proj_size or layer.hidden_size)
    return hidden, x.new_zeros(directions, batch, layer.hidden_size)
