"""The bare kernels of a training step: the recurrent layers and the CTC loss, forward and backward, nothing else."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from asr.errors import ConfigError


@dataclass(frozen=True)
class Shape:
    """What of a micro-batch decides the time of the kernels."""

    frames: Tensor
    """(B,) emission frames on the CPU, after augmentation and subsampling."""
    labels: Tensor
    """(B, L) label ids."""
    label_lengths: Tensor
    """(B,) on the CPU."""


class BareKernels:
    """An encoder's own recurrent layers, one after the other, and CTC, on random inputs.

    There are no featurizer, augmentation, convolutions, normalisation, dropout, head, optimizer or data. The gradient
    of the input is computed, too, as it is below a convolution.

    Args:
        encoder: any with `torch.nn.LSTM` or `GRU` layers that follow one another.
        labels: number of labels, blank among them.
        autocast: makes the context of the training's precision.
    """

    def __init__(self, encoder: nn.Module, labels: int, autocast: Any):
        layers = [module for module in encoder.modules() if isinstance(module, nn.RNNBase)]
        widths = [(layer.proj_size or layer.hidden_size) * (1 + layer.bidirectional) for layer in layers]
        if not layers or any(w != layer.input_size for w, layer in zip(widths, layers[1:], strict=False)):
            raise ConfigError("benchmark training: the encoder has no stack of torch.nn.LSTM or GRU layers to time.")
        self.layers = [copy.deepcopy(layer) for layer in layers]
        for layer in self.layers:
            layer.flatten_parameters()
        self.width, self.labels, self.autocast = widths[-1], labels, autocast
        weight = next(self.layers[0].parameters())
        self.options: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.ctc = nn.CTCLoss(reduction="sum", zero_infinity=True)

    def inputs(self, shape: Shape, packed: bool) -> tuple:
        """Random inputs of a micro-batch, its log-probabilities, and the gradient of the layers' output."""
        batch, frames = len(shape.frames), int(shape.frames.max())
        x: Any = torch.randn(batch, frames, self.layers[0].input_size, **self.options)
        gradient: Any = torch.randn(batch, frames, self.width, **self.options)
        if packed:
            x, gradient = (
                pack_padded_sequence(y, shape.frames, batch_first=True, enforce_sorted=False) for y in (x, gradient)
            )
            x.data.requires_grad_()
            gradient = gradient.data
        logits = torch.randn(frames, batch, self.labels, device=self.options["device"])
        return x if packed else x.requires_grad_(), gradient, logits.log_softmax(-1).requires_grad_()

    def run(self, shape: Shape, inputs: tuple) -> None:
        """Forward and backward."""
        x, gradient, log_probs = inputs
        for layer in self.layers:
            layer.zero_grad()
        with self.autocast():
            for layer in self.layers:
                x, _ = layer(x)
        loss = self.ctc(log_probs, shape.labels, shape.frames, shape.label_lengths)
        output = x.data if isinstance(x, PackedSequence) else x
        torch.autograd.backward([output, loss], [gradient.to(output.dtype), None])
