"""Connectionist temporal classification, of the last layer and of intermediate ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from asr.data.needs import least_frames
from asr.errors import ConfigError
from asr.model import AcousticModel
from asr.types import Batch

View = Callable[[int], tuple[Tensor, Tensor]]


class Ctc:
    """The negative log-likelihood of the labels, over all alignments (Graves et al., ICML 2006).

    With intermediate layers (Lee & Watanabe, arXiv 2102.03216), whose hidden vectors go through the model's own head:

        loss = (1 - intermediate_weight) · CTC + intermediate_weight · mean over the layers of their CTC

    Args:
        model: that is trained.
        intermediate_layers: the encoder's layers, counted from 1, that are to predict the labels, too.
        intermediate_weight: of them together.

    Raises:
        ConfigError: there are no such layers, or the weight is out of range.
    """

    def __init__(self, model: AcousticModel, intermediate_layers: Sequence[int] = (), intermediate_weight: float = 0.3):
        if not 0 <= intermediate_weight < 1:
            raise ConfigError(f"objective.intermediate_weight={intermediate_weight}: must be 0 or more, and below 1.")
        self.layers = model.inner_layers(intermediate_layers, "objective.intermediate_layers")
        self.intermediate_weight = intermediate_weight

    def __call__(self, model: AcousticModel, view: View, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        _, _, parts = self.encode(model, *view(0), batch.labels, batch.label_lengths)
        return self.total(parts), parts

    def encode(
        self, model: AcousticModel, features: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(B, T, D), (B,), (B, L), (B,) → log-probabilities (B, T', V), lengths (B,), losses (B,) by name."""
        intermediate = []

        def tap(layer: int, hidden: Tensor, frames: Tensor) -> Tensor:
            if layer + 1 in self.layers:
                intermediate.append(ctc_losses(model.log_probs(hidden), frames, labels, label_lengths))
            return hidden

        log_probs, lengths = model.encode(features, lengths, tap if self.layers else None)
        parts = {"ctc": ctc_losses(log_probs, lengths, labels, label_lengths)}
        if intermediate:
            parts["intermediate_ctc"] = torch.stack(intermediate).mean(0)
        return log_probs, lengths, parts

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """(B,): the parts, weighted."""
        if "intermediate_ctc" not in parts:
            return parts["ctc"]
        return torch.lerp(parts["ctc"], parts["intermediate_ctc"], self.intermediate_weight)


def ctc_losses(log_probs: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor) -> Tensor:
    """(B, T, V), (B,), (B, L), (B,) → (B,) negative log-likelihoods, zero where the labels do not fit the frames."""
    log_probs = log_probs.transpose(0, 1)
    return nn.functional.ctc_loss(log_probs, labels, lengths, label_lengths, reduction="none", zero_infinity=True)


def fits(lengths: Tensor, labels: Tensor, label_lengths: Tensor) -> Tensor:
    """(B,), (B, L), (B,) → (B,) whether the frames are enough for the labels."""
    rows = zip(labels.tolist(), label_lengths.tolist(), strict=True)
    return torch.tensor([least_frames(row[:count]) for row, count in rows]) <= lengths
