"""CTC whose distributions agree over two augmented views of an utterance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from asr.errors import ConfigError
from asr.featurizers.normalization import frame_mask
from asr.model import AcousticModel
from asr.objectives.ctc import Ctc, View
from asr.types import Batch


class CrCtc(Ctc):
    """Consistency-regularised CTC (Yao et al., arXiv 2410.05101).

    The feature augmentations that keep lengths are drawn twice; both views run as one batch through the encoder, with
    dropout of their own. With z1 and z2 their distributions over labels in each frame, and sg(·) without gradient:

        loss = ½ (CTC(z1) + CTC(z2)) + weight · ½ Σ_t [KL(sg(z2_t) ‖ z1_t) + KL(sg(z1_t) ‖ z2_t)]

    A batch takes twice the memory and time. The paper masks 2.5 times as many frames as it does for CTC.

    Args:
        model: that is trained.
        weight: of the consistency.
        intermediate_layers, intermediate_weight, phones, phone_layer, phone_weight: of the CTC of both views, as in
            `Ctc`.
        start_step: the first step with two views; those before are `Ctc`'s, in half the time.

    Raises:
        ConfigError: there are no such layers, a weight is out of range, or the first step negative.
    """

    def __init__(
        self,
        model: AcousticModel,
        weight: float = 0.2,
        intermediate_layers: Sequence[int] = (),
        intermediate_weight: float = 0.3,
        start_step: int = 0,
        phones: str | None = None,
        phone_layer: int = 2,
        phone_weight: float = 0.3,
    ):
        super().__init__(model, intermediate_layers, intermediate_weight, phones, phone_layer, phone_weight)
        if weight < 0:
            raise ConfigError(f"objective.weight={weight}: must not be negative.")
        if start_step < 0:
            raise ConfigError(f"objective.start_step={start_step}: must not be negative.")
        self.weight, self.start_step = weight, start_step

    @property
    def before(self) -> Callable:
        """The objective of the steps before the first with two views."""
        return super().forward

    def forward(self, model: AcousticModel, view: View, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        (one, lengths), (other, other_lengths) = view(0), view(1)
        if not torch.equal(lengths, other_lengths):
            raise ConfigError("objective=cr_ctc: a feature augmentation without 'max_speed' changes lengths.")
        features, labels = torch.cat([one, other]), batch.labels.repeat(2, 1)
        log_probs, frames, parts = self.encode(
            model, features, lengths.repeat(2), labels, batch.label_lengths.repeat(2)
        )
        parts["consistency"] = divergences(log_probs, frames)
        parts = {name: part.unflatten(0, (2, -1)).mean(0) for name, part in parts.items()}
        return self.total(parts) + self.weight * parts["consistency"], parts


def divergences(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """(2B, T, V), (2B,) → (2B,) Σ_t KL(sg(q_t) ‖ p_t), q being the other of the two views of the same utterance."""
    others = log_probs.detach().roll(len(log_probs) // 2, 0)
    frames = nn.functional.kl_div(log_probs, others, reduction="none", log_target=True).sum(-1)
    return frames.masked_fill(~frame_mask(lengths, frames.shape[1], frames.device), 0).sum(-1)
