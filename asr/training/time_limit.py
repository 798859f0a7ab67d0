"""A training that is done after a given time, on a slow machine, too."""

from __future__ import annotations

from time import monotonic
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from asr.errors import ConfigError
from asr.training.checkpoints import agree


class TimeLimit(Callback):
    """Ends a training after so many minutes, and its schedule with it, which goes on faster where time runs out.

    The place in the schedule is the share of the steps that is done, or of the time where that is greater (budgeted
    training; Li et al., arXiv 1905.04753). A machine that is fast enough makes the very steps of no limit.

    Args:
        minutes: of training and validations, on the clock; those before the run was resumed count, too.
    """

    def __init__(self, minutes: float):
        if not minutes > 0:
            raise ConfigError(f"max_minutes={minutes}: must be above 0; null is no limit.")
        self.minutes = minutes
        self.place = 0  # steps of the schedule
        self.seconds = 0.0  # before `since`
        self.since = monotonic()  # a finished run that is resumed does not start

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since, self.step = monotonic(), trainer.global_step
        self.steps = int(pl_module.steps)  # type: ignore[arg-type]
        self.place = max(self.place, self.step)
        self._end_if_there(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        if trainer.global_step == self.step:  # of several that are accumulated
            return
        self.step = trainer.global_step
        share = agree(trainer, self._passed()) / (60 * self.minutes)
        self.place += 1
        missed = max(0, min(self.steps, int(share * self.steps)) - self.place)
        for config in trainer.lr_scheduler_configs:
            if config.interval == "step":
                for _ in range(missed):
                    config.scheduler.step()  # type: ignore[call-arg]
        self.place += missed
        self._end_if_there(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.place >= self.steps > trainer.global_step:
            pl_module.print(
                f"max_minutes={self.minutes:g}: {trainer.global_step:,} of {self.steps:,} steps were made in this "
                "time, and the schedule shortened to them; a new run makes all with max_minutes=null"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._passed(), "place": self.place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.place = state_dict["seconds"], state_dict["place"]

    def _passed(self) -> float:
        return self.seconds + monotonic() - self.since

    def _end_if_there(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.place >= self.steps:
            pl_module.steps = trainer.global_step  # type: ignore[assignment]
