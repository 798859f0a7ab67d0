"""Two ways to hold a batch of utterances while recurrent layers run over it."""

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


class Padded:
    """Frames stay (B, T, D); each direction of an LSTM runs over the padding too.

    The backward direction runs on utterances reversed within their lengths, so that none begins in its padding.
    """

    def __init__(self, lengths: Tensor, frames: int, device: torch.device):
        self.batch, self.frames = len(lengths), frames
        self.lengths, self.device = lengths, device

    @cached_property
    def real(self) -> Tensor:
        """The places of the real frames in B · T."""
        return real_frames(self.lengths, self.frames, self.device)

    @cached_property
    def reversed(self) -> Tensor:
        """Where in B · T each frame goes when its utterance is reversed; done twice, all is as before."""
        frame, end = torch.arange(self.frames)[None, :], self.lengths[:, None]
        backwards = torch.where(frame < end, end - 1 - frame, frame)
        return (torch.arange(self.batch)[:, None] * self.frames + backwards).flatten().to(self.device)

    def enter(self, x: Tensor) -> Tensor:
        """(B, T, D) → this layout."""
        return x

    def leave(self, x: Tensor) -> Tensor:
        """This layout → (B, T, D)."""
        return x

    def spread(self, x: Tensor) -> Tensor:
        """(B, D), a vector for each utterance → what can be multiplied with frames in this layout."""
        return x[:, None]

    def run(self, layer: Any, x: Tensor, weights: Weights) -> Tensor:
        """An LSTM layer without projection over frames in this layout."""
        outputs = [self._one_direction(layer, x, weights(layer, ""))]
        if layer.bidirectional:
            outputs.append(self._turn(self._one_direction(layer, self._turn(x), weights(layer, "_reverse"))))
        return torch.cat(outputs, -1)

    def _one_direction(self, layer: Any, x: Tensor, weights: list[Tensor]) -> Tensor:
        zeros = x.new_zeros(1, x.shape[0], layer.hidden_size)
        return torch.lstm(x, (zeros, zeros), weights, True, 1, 0.0, layer.training, False, True)[0]

    def _turn(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, self.reversed).view_as(x)


class Packed:
    """The real frames only, (N, D), in the order of `torch.nn.utils.rnn.PackedSequence`."""

    real = None
    """All of them are."""

    def __init__(self, lengths: Tensor, frames: int, device: torch.device):
        self.batch, self.frames = len(lengths), frames
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
        """A recurrent layer of any kind over frames in this layout."""
        directions = ["", "_reverse"] if layer.bidirectional else [""]
        flat = [weight for direction in directions for weight in weights(layer, direction)]
        shape = len(directions), self.batch
        h = x.new_zeros(*shape, layer.proj_size or layer.hidden_size)
        rest = flat, True, 1, 0.0, layer.training, layer.bidirectional
        if isinstance(layer, nn.GRU):
            return torch.gru(x, self.batch_sizes, h, *rest)[0]
        return torch.lstm(x, self.batch_sizes, (h, x.new_zeros(*shape, layer.hidden_size)), *rest)[0]
