"""Checkpoints that a run goes on from exactly: written whole or not at all, at regular times and when asked to stop."""

from __future__ import annotations

import contextlib
import io
import math
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint

from asr import signals


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it is on disk: the one before is never damaged.

    Lightning's own goes through the system's temporary folder, and where that is another disk, copying is no move.

    Args:
        run: the run's folder: where that has vanished, no other is made in its place.
    """

    def __init__(self, run: Path):
        super().__init__()
        self.run = run

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        path = Path(path)
        part = path.with_name(".part")
        buffer = io.BytesIO()  # torch's own writer would turn an OSError into a RuntimeError
        torch.save(checkpoint, buffer)
        try:
            path.parent.mkdir(exist_ok=True, parents=self.run.is_dir())
            with part.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise


def agree(trainer: L.Trainer, number: float) -> float:
    """The greatest of the ranks' numbers."""
    if trainer.world_size == 1:
        return number
    return float(
        trainer.strategy.reduce(torch.tensor(float(number), device=trainer.strategy.root_device), reduce_op="max")
    )


def follow_folder(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Let the best checkpoints be those of this run's folder, where it was moved or copied since.

    Lightning would forget the scores, and look for the files in the old place.
    """
    for callback in trainer.checkpoint_callbacks:
        state = checkpoint["callbacks"].get(callback.state_key)
        if not isinstance(callback, ModelCheckpoint) or not state or state["dirpath"] == callback.dirpath:
            continue
        folder = Path(str(callback.dirpath))
        here = {path: str(folder / Path(path).name) for path in state["best_k_models"]}
        kept = {here[path]: score for path, score in state["best_k_models"].items() if Path(here[path]).is_file()}
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = found if (found := str(folder / Path(state[key]).name)) in kept else ""
        if state["best_model_path"]:
            state.update(dirpath=callback.dirpath, best_k_models=kept)


class ExactCheckpoint(Callback):
    """Saves `last.ckpt` so that a run goes on where it was, where Lightning would skip something.

    - Lightning resumes a checkpoint from the end of an epoch's last batch behind the validation that follows; here it
      is resumed ahead of it.
    - The row that a logger gets for a batch is written when the callbacks are done; here it is written first.

    Args:
        dirpath: the folder of the checkpoints.
    """

    def __init__(self, dirpath: str | Path):
        self.path = Path(dirpath) / "last.ckpt"
        self.step = 0
        self.ahead_of_validation = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step

    def stepped(self, trainer: L.Trainer) -> bool:
        """Whether the batch made a step: after the other accumulated ones, there are gradients that no file holds."""
        before, self.step = self.step, trainer.global_step
        return self.step != before

    def save(self, trainer: L.Trainer) -> None:
        """At the end of a batch, of training or of validation."""
        loop = trainer.fit_loop.epoch_loop
        if not trainer.validating:
            trainer._logger_connector.update_train_step_metrics()
        self.ahead_of_validation = trainer.validating or loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
        try:
            trainer.save_checkpoint(self.path, weights_only=False)
        finally:
            self.ahead_of_validation = False

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.ahead_of_validation:
            progress = checkpoint["loops"]["fit_loop"]
            for part in ("total", "current"):
                done = progress["epoch_loop.batch_progress"][part]
                done["completed"] = done["processed"]
                # Lightning's mark of a validation that was interrupted: it begins again
                begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
                progress["epoch_loop.val_loop.batch_progress"][part] = begun
            progress["epoch_loop.val_loop.batch_progress"]["is_last_batch"] = False


class LastCheckpoint(ExactCheckpoint, Checkpoint):
    """Saves `last.ckpt` over the one before, whenever so many steps or minutes have passed.

    Args:
        dirpath: the folder of the checkpoints.
        every_n_train_steps, every_n_minutes: whichever comes first; `None` for never.
    """

    def __init__(self, dirpath: str, every_n_train_steps: int | None = 200, every_n_minutes: float | None = 10.0):
        super().__init__(dirpath)
        self.every_n_train_steps, self.every_n_minutes = every_n_train_steps, every_n_minutes

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.stepped(trainer) and self._is_due(trainer):
            self.save(trainer)
            self.saved_at = time.monotonic()

    def _is_due(self, trainer: L.Trainer) -> bool:
        if self.every_n_train_steps and trainer.global_step % self.every_n_train_steps == 0:
            return True
        if self.every_n_minutes is None:
            return False
        return bool(agree(trainer, time.monotonic() - self.saved_at > 60 * self.every_n_minutes))


class Preemption(ExactCheckpoint):
    """Saves and stops at the end of the batch in which a rank got a signal (see `signals`); all ranks agree on it.

    Raises:
        Preempted: on all ranks, when all is saved.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        signals.take_over()  # from Lightning's handlers, which communicate, and so wait for ever (its issue 21406)
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.stepped(trainer):
            self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        if number := int(agree(trainer, signals.received())):
            self.save(trainer)
            raise signals.Preempted(number)


def _nothing() -> None:
    """For Lightning's question at each batch whether rank 0 got a signal, which waits for the device."""


def validation_is_due(trainer: L.Trainer) -> bool:
    """Whether a run is resumed from a checkpoint ahead of a validation, or within it."""
    batches = trainer.fit_loop.epoch_loop.val_loop.batch_progress.current
    return trainer.datamodule.validation is not None and batches.ready > batches.completed  # type: ignore[attr-defined]


class StopAfterSteps(Callback):
    """Ends the training after the module's `steps`, wherever in an epoch that is.

    Lightning is told of them only at the end: a `max_steps` given at the start makes it count an epoch twice that is
    resumed from a checkpoint of its end.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not validation_is_due(trainer):
            self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step >= int(pl_module.steps):  # type: ignore[arg-type]
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_batch_end(trainer, pl_module)


class LastValidation(Callback):
    """Has the last step validated, too, so that the best weights may be the last ones.

    Lightning validates at the ends of epochs, or of every few, while `max_steps` ends a training anywhere.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if validation_is_due(trainer):
            self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        last_batch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if trainer.global_step >= int(pl_module.steps) or (last_batch and last_epoch):  # type: ignore[arg-type]
            if trainer.check_val_every_n_epoch:
                trainer.check_val_every_n_epoch = 1
            trainer.val_check_batch = 1
            trainer._val_check_time_interval = None  # type: ignore[attr-defined]


def validate_between_steps(trainer: L.Trainer) -> None:
    """Let no validation come between accumulated batches, whose gradients the checkpoint after it would not hold."""
    loop, batches = trainer.fit_loop.epoch_loop, trainer.accumulate_grad_batches
    if trainer.val_check_batch not in (None, math.inf):
        trainer.val_check_batch = -(-int(trainer.val_check_batch) // batches) * batches  # type: ignore[arg-type]
    due = loop._should_check_val_fx  # also by the clock, and when the training is to stop
    loop._should_check_val_fx = lambda data_fetcher: not loop._should_accumulate() and due(data_fetcher)  # type: ignore[method-assign]


def stopped_early(trainer: L.Trainer) -> bool:
    """Whether a run is resumed that its early stopping has ended, which Lightning does not ask again."""
    return any(c.stopped_epoch or 0 < c.wait_count >= c.patience for c in trainer.early_stopping_callbacks)


def keep_rest_of_epoch(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Undo, in a checkpoint, that an epoch counts as done which was stopped in the middle, as by `trainer.max_time`."""
    progress = checkpoint["loops"]["fit_loop"]
    batches, epochs = progress["epoch_loop.batch_progress"]["current"]["ready"], progress["epoch_progress"]
    if batches < trainer.num_training_batches and epochs["total"]["processed"] == epochs["total"]["started"] > 0:
        for part in ("total", "current"):
            epochs[part]["processed"] -= 1
            epochs[part]["completed"] = epochs[part]["processed"]


def fit_world_size(checkpoint: dict[str, Any], world_size: int) -> None:
    """Count the batches of an epoch that is resumed as one of so many ranks counts them."""
    before = checkpoint.get("world_size", world_size)
    batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    ready = batches["ready"]
    for name, count in batches.items():  # some are one less than ready, at the end of a batch
        batches[name] = ready * before // world_size - (ready - count)
