"""Connectionist temporal classification, of the last layer and of lower ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from asr.data.needs import least_frames
from asr.errors import ConfigError
from asr.model import AcousticModel
from asr.objectives.phones import Phones
from asr.pipeline import Pipeline
from asr.types import Batch

View = Callable[[int], tuple[Tensor, Tensor]]


class Ctc(nn.Module):
    """The negative log-likelihood of the labels, over all alignments (Graves et al., ICML 2006).

    With intermediate layers (Lee & Watanabe, arXiv 2102.03216), whose hidden vectors go through the model's own head:

        loss = (1 - intermediate_weight) · CTC + intermediate_weight · mean over the layers of their CTC

    With phones (Fernández et al., IJCAI 2007; Krishna et al., arXiv 1807.06234), which a layer predicts by a head that
    the recognizer does not keep:

        loss' = (1 - phone_weight) · loss + phone_weight · CTC of the phones

    An utterance with more phones than frames has no CTC of the phones; `prepare` counts them.

    Args:
        model: that is trained.
        intermediate_layers: the encoder's layers, counted from 1, that are to predict the labels, too.
        intermediate_weight: of them together.
        phones: how words are pronounced: a lexicon file, or `espeak:VOICE`, see `pronounce`; `None` for no phones.
        phone_layer: the encoder's layer, counted from 1, that is to predict them.
        phone_weight: of their CTC.

    Raises:
        ConfigError: there are no such layers, or a weight is out of range.
    """

    def __init__(
        self,
        model: AcousticModel,
        intermediate_layers: Sequence[int] = (),
        intermediate_weight: float = 0.3,
        phones: str | None = None,
        phone_layer: int = 2,
        phone_weight: float = 0.3,
    ):
        super().__init__()
        for key, weight in (("intermediate_weight", intermediate_weight), ("phone_weight", phone_weight)):
            if not 0 <= weight < 1:
                raise ConfigError(f"objective.{key}={weight}: must be 0 or more, and below 1.")
        self.layers = model.inner_layers(intermediate_layers, "objective.intermediate_layers")
        self.intermediate_weight, self.phone_weight = intermediate_weight, phone_weight
        self.pronunciations = phones
        self.phone_layers = model.inner_layers([phone_layer] if phones else [], "objective.phone_layer")
        self.phones: Phones | None = None

    def prepare(self, pipeline: Pipeline, texts: Iterable[str], frames: Iterable[int]) -> str | None:
        """Learn the phones of all transcripts that there will be labels of; returns a line that shows them.

        Raises:
            ConfigError, DataError: as `pronounce`.
        """
        if not self.pronunciations:
            return None
        spell = pipeline.tokenizer.decode
        spelled = [spell(pipeline.encode(text)) for text in texts]  # less what is unknown
        self.phones = phones = Phones(self.pronunciations, spelled, spell, pipeline.text, pipeline.model.encoder.dim)
        crowded = sum(least_frames(phones.encode(t)) > count for t, count in zip(spelled, frames, strict=True))
        note = f"; {crowded:,} utterances may have more than frames, and learn none" if crowded else ""
        return f"phones      {len(phones)}: {phones.example()}{note}"

    def forward(self, model: AcousticModel, view: View, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        _, _, parts = self.encode(model, *view(0), batch.labels, batch.label_lengths)
        return self.total(parts), parts

    def encode(
        self, model: AcousticModel, features: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(B, T, D), (B,), (B, L), (B,) → log-probabilities (B, T', V), lengths (B,), losses (B,) by name."""
        intermediate, parts, phones = [], {}, self.phones
        assert phones is not None or not self.phone_layers, "prepare() comes first"
        if phones is not None:
            spoken = phones.labels(labels, label_lengths)  # ahead of the layers, for it waits for the device

        def tap(layer: int, hidden: Tensor, frames: Tensor) -> Tensor:
            if layer + 1 in self.layers:
                intermediate.append(ctc_losses(model.log_probs(hidden), frames, labels, label_lengths))
            if phones is not None and layer + 1 in self.phone_layers:
                parts["phone_ctc"] = ctc_losses(phones(hidden), frames, *spoken)
            return hidden

        log_probs, lengths = model.encode(features, lengths, tap if self.layers or self.phone_layers else None)
        parts["ctc"] = ctc_losses(log_probs, lengths, labels, label_lengths)
        if intermediate:
            parts["intermediate_ctc"] = torch.stack(intermediate).mean(0)
        return log_probs, lengths, parts

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """(B,): the parts, weighted."""
        loss = parts["ctc"]
        for name, weight in (("intermediate_ctc", self.intermediate_weight), ("phone_ctc", self.phone_weight)):
            if name in parts:
                loss = torch.lerp(loss, parts[name], weight)
        return loss


def ctc_losses(log_probs: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor) -> Tensor:
    """(B, T, V), (B,), (B, L), (B,) → (B,) negative log-likelihoods, zero where the labels do not fit the frames."""
    log_probs = log_probs.transpose(0, 1)
    return nn.functional.ctc_loss(log_probs, labels, lengths, label_lengths, reduction="none", zero_infinity=True)


def fits(lengths: Tensor, labels: Tensor, label_lengths: Tensor) -> Tensor:
    """(B,), (B, L), (B,) → (B,) whether the frames are enough for the labels."""
    rows = zip(labels.tolist(), label_lengths.tolist(), strict=True)
    return torch.tensor([least_frames(row[:count]) for row, count in rows]) <= lengths
