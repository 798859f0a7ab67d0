"""Connectionist temporal classification."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from asr.model import AcousticModel
from asr.types import Batch

View = Callable[[int], tuple[Tensor, Tensor]]
Losses = tuple[Tensor, dict[str, Tensor]]


class Ctc:
    """The negative log-probability of all alignments of the labels (Graves et al., ICML 2006)."""

    def __call__(self, model: AcousticModel, view: View, batch: Batch) -> Losses:
        log_probs, lengths = model.encode(*view(0))
        return ctc_losses(log_probs, lengths, batch.labels, batch.label_lengths), {}


def ctc_losses(log_probs: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor) -> Tensor:
    """(B, T, V), (B,), (B, L), (B,) → (B,) negative log-likelihoods, zero where the labels do not fit the frames."""
    log_probs = log_probs.transpose(0, 1)
    return nn.functional.ctc_loss(log_probs, labels, lengths, label_lengths, reduction="none", zero_infinity=True)
