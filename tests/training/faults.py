"""What goes wrong, and what takes notes, for configs to name: processes of their own import it, too."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

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


class Notes(Callback):
    """Writes a line for each batch that was trained on: process, epoch, number in the epoch, and its utterances.

    Those of validation go to a file of their own.

    Args:
        path: the beginning of the files' names, two for each rank.
    """

    def __init__(self, path: str):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self._note(str(trainer.global_rank), trainer.current_epoch, batch, batch_idx)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._note(f"validation-{trainer.global_rank}", trainer.current_epoch, batch, batch_idx)

    def _note(self, name: str, epoch: int, batch, batch_idx: int) -> None:
        numbers = " ".join(map(str, batch.indices.tolist()))
        with open(f"{self.path}-{name}", "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {epoch} {batch_idx} {numbers}\n")


class Gradients(Callback):
    """Keeps the gradients of every optimizer step, and writes them when training ends.

    Args:
        path: of the file.
    """

    def __init__(self, path: str):
        self.path, self.steps = path, []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.steps.append({name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None})

    def on_train_end(self, trainer, pl_module) -> None:
        if trainer.is_global_zero:
            torch.save(self.steps, self.path)
