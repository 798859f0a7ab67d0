"""Steps that would spoil the weights are left out, on all ranks together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from asr.errors import TrainingError
from asr.training.module import SpeechRecognition
from asr.types import Batch, Utterance

KEPT = 50
"""Steps that a rank writes at the most: each may be hundreds of megabytes, and an unsteady training has many."""


class SkipBadSteps(Callback):
    """Leaves out an optimizer step whose loss or gradient is not finite, and keeps what it was computed from.

    The ranks agree, once for each optimizer step, so all of them leave it out, with all its accumulated batches: the
    weights, the optimizer's state and BatchNorm's running statistics stay as they were; schedule and position go on.
    Each rank writes its micro-batches to `folder/stepNNNNNNN-rankR.pt`, up to `KEPT` files: those with a loss that is
    not finite or, where all losses are, all of the step. Under 16-bit mixed precision a gradient that overflows is the
    scaler's matter, which skips such steps, too, and lowers its scale: it is counted, but nothing is written.

    Args:
        folder: for the batches.
        most: so many such steps in a row end the training.

    Raises:
        TrainingError: there were `most` in a row.
    """

    def __init__(self, folder: Path, most: int = 20):
        self.folder, self.most = folder, most
        self.in_a_row = 0
        self.statistics: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int):
        if batch_idx % trainer.accumulate_grad_batches == 0:
            norms = (module for module in pl_module.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
            self.statistics = [(value, value.clone()) for norm in norms for value in norm.buffers()]

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: SpeechRecognition, optimizer: Any) -> None:  # type: ignore[override]
        losses = [losses for _, losses in pl_module.step_losses]
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        good_losses = torch.isfinite(torch.cat(losses)).all() if losses else torch.ones((), dtype=torch.bool)
        good_gradients = torch.isfinite(nn.utils.get_total_norm(gradients))
        bad = torch.stack([~good_losses.to(pl_module.device), ~good_gradients.to(pl_module.device)]).float()
        bad_losses, bad_gradients = trainer.strategy.reduce(bad, reduce_op="max").tolist()
        if not bad_losses and not bad_gradients:
            self.in_a_row = 0
            return
        optimizer.zero_grad(set_to_none=True)  # without gradients, its step changes nothing
        for value, before in self.statistics:
            value.copy_(before)
        self.in_a_row += 1
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if not bad_losses and scaled and self.in_a_row < self.most:
            return
        named, path = self._keep(trainer, pl_module, bool(bad_losses))
        what = "loss" if bad_losses else "gradient"
        trainer.strategy.barrier()  # what one rank says now is true of all
        if self.in_a_row >= self.most:
            raise TrainingError(
                f"{self.in_a_row} steps in a row had no finite loss or gradient; the last one, {trainer.global_step}, "
                f"of {named}. Its batches are in {path}. If these utterances are sound, go on with resume=auto and "
                "trainer.precision=32-true or a lower trainer.gradient_clip_val; or start a new run with a lower "
                "optimizer.lr, from these weights by init_from=."
            )
        if trainer.is_global_zero:
            print(f"step {trainer.global_step} left out: its {what} is not finite; {named}: see {path}", flush=True)

    def _keep(self, trainer: L.Trainer, module: SpeechRecognition, by_loss: bool) -> tuple[str, Path]:
        """Write this rank's bad micro-batches; the names of all ranks' utterances, and where they are."""
        rows, kept = [], []
        train = trainer.datamodule.train  # type: ignore[attr-defined]
        for batch, losses in module.step_losses:
            bad = ~torch.isfinite(losses).cpu() if by_loss else torch.ones(len(batch), dtype=torch.bool)
            if not bad.any():
                continue
            utterances = [train[int(index) % len(train)] for index in batch.indices]
            rows += [utterance for utterance, is_bad in zip(utterances, bad.tolist(), strict=True) if is_bad]
            kept.append(_plain(batch, losses, utterances, bad))
        path = self.folder / f"step{trainer.global_step:07d}-rank{trainer.global_rank}.pt"
        if kept and len(list(self.folder.glob(f"*-rank{trainer.global_rank}.pt"))) < KEPT:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                torch.save({"epoch": trainer.current_epoch, "step": trainer.global_step, "batches": kept}, path)
            except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
                print(f"{path} could not be written: {error}", flush=True)
        names = [f"{row.id} ({row.audio_filepath})" for row in rows]
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, names)
            names = [name for part in gathered for name in part]
        listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        return f"{'utterance' if len(names) == 1 else 'utterances'} {listed}", self.folder

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.in_a_row = state_dict["in_a_row"]


def _plain(batch: Batch, losses: Tensor, utterances: list[Utterance], bad: Tensor) -> dict[str, Any]:
    """What `torch.load` reads without running code: a batch, its losses, and who is in it."""
    tensors = {name: getattr(batch, name).cpu() for name in ("waveforms", "lengths", "labels", "label_lengths")}
    names = {"ids": [u.id for u in utterances], "files": [u.audio_filepath for u in utterances]}
    return tensors | names | {"indices": batch.indices, "losses": losses.cpu(), "bad": bad}
