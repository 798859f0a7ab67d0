"""Objectives that go wrong, for configs to name: processes of their own import them, too."""

from __future__ import annotations

from typing import Any

from asr.objectives.ctc import Ctc


class SpoiltCtc(Ctc):
    """CTC that is not finite for some utterances.

    Args:
        model: that is trained.
        spoilt: their numbers; `None`: all.
        by: "loss", "gradient" (where the loss is finite), or "features" (the whole batch, from the first layer on).
    """

    def __init__(self, model: Any, spoilt: list[int] | None = None, by: str = "loss", **options: Any):
        super().__init__(model, **options)
        self.spoilt, self.by = spoilt, by

    def __call__(self, model, view, batch):
        bad = [self.spoilt is None or int(index) in self.spoilt for index in batch.indices]
        if any(bad) and self.by == "features":
            features, lengths = view(0)
            return super().__call__(model, lambda number: (features * float("nan"), lengths), batch)
        losses, parts = super().__call__(model, view, batch)
        for k in (k for k, is_bad in enumerate(bad) if is_bad):
            losses = losses.clone()
            if self.by == "loss":
                losses[k] = losses[k] * float("nan")
            else:  # the square root has no slope at zero
                losses[k] = losses[k] + (losses[k] - losses[k].detach()).abs().sqrt()
        return losses, parts
