"""A moving average of the weights, which is validated and saved in their place."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from asr.errors import ConfigError


class Ema(Callback):
    """Exponential moving average of the weights (Polyak & Juditsky 1992), from the first step on.

    At the n-th optimizer step, counted from 0, with a decay that grows at first (as in TensorFlow's average):

        average ← d · average + (1 - d) · weights,   d = min(decay, (1 + n) / (10 + n))

    beginning with the initial weights; statistics such as BatchNorm's are averaged, too. Validation uses the average. A
    checkpoint holds it as `state_dict`, which is all that loads as a recognizer, and beside it, as in Lightning's
    `WeightAveraging`, the weights to go on with as `current_model_state`. That callback would also copy the decoder's
    models and the manifests, has no growing decay, and forgets the weights when a training ends early.

    Args:
        decay: the share of the average that stays at each step.

    Raises:
        ConfigError: the decay is out of range, or a checkpoint is to hold weights only, which would not be these.
    """

    def __init__(self, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ConfigError(f"callbacks.ema.decay={decay}: must be 0 or more, and below 1.")
        self.decay = decay
        self.step = 0
        self.average: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.swapped = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_weights_only:
                raise ConfigError("callbacks: with ema, no ModelCheckpoint may have save_weights_only=true.")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        state = pl_module.state_dict()
        self.weights = {name: value for name, value in state.items() if value.is_floating_point()}
        start = self.average or self.weights
        self.average = {name: start[name].to(value.device, copy=True) for name, value in self.weights.items()}

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step > self.step:  # not after each of the accumulated batches
            decay = min(self.decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_([*self.average.values()], [*self.weights.values()], 1 - decay)
            self.step = trainer.global_step

    def on_validation_epoch_start(self, *_: Any) -> None:
        self._swap()

    def on_validation_epoch_end(self, *_: Any) -> None:
        self._swap()

    def _swap(self) -> None:
        self.swapped = not self.swapped
        for average, weight in zip(self.average.values(), self.weights.values(), strict=True):
            before = weight.clone()
            weight.copy_(average)
            average.copy_(before)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step = state_dict["step"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint["state_dict"], checkpoint["state_dict"] | self.average
        checkpoint["current_model_state"], checkpoint["state_dict"] = reversed(states) if self.swapped else states

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.average = checkpoint["state_dict"]
        pl_module.load_state_dict(checkpoint["current_model_state"])
