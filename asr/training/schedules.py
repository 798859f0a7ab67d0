"""Learning-rate schedules: functions of an optimizer and the number of its steps, updated after every step.

The peak is the optimizer's own learning rate. A schedule that depends on the number of steps has `total_steps`, one
more, as torch's OneCycleLR: a run with another number is not resumed.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from asr.errors import ConfigError


def onecycle(
    optimizer: Optimizer, steps: int, warmup: float = 0.15, start: float = 0.04, end: float = 4e-6
) -> LRScheduler:
    """Cosine up over the share `warmup` of the steps, cosine down over the rest (Smith & Topin, arXiv 1708.07120).

    `start` and `end` are shares of the peak. The momentum stays as it is.
    """
    _share(warmup, "warmup")
    if not 0 < start <= 1 or not 0 <= end <= 1:
        raise ConfigError(f"schedule.start={start} must be above 0, schedule.end={end} 0 or more, and both at most 1.")
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(
        optimizer,
        peaks,
        total_steps=steps + 1,  # the step after the last one is asked for, too
        pct_start=max(warmup, (1 + 1e-6) / (steps + 1)),  # torch divides by zero where the rise is one step long
        div_factor=1 / start,
        final_div_factor=start / end if end else math.inf,
        cycle_momentum=False,
    )


def warmup_cosine(optimizer: Optimizer, steps: int, warmup: float = 0.05, end: float = 0.0) -> LRScheduler:
    """Linearly up over the share `warmup` of the steps, then a half cosine down to the share `end` of the peak."""
    _share(warmup, "warmup")
    if not 0 <= end <= 1:
        raise ConfigError(f"schedule.end={end}: must be a share of the peak, from 0 to 1.")
    rise = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        progress = min(1.0, (step - rise) / max(1, steps - rise))
        return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))

    schedule = LambdaLR(optimizer, factor)
    schedule.total_steps = steps + 1  # type: ignore[attr-defined]
    return schedule


def noam(optimizer: Optimizer, steps: int, warmup_steps: int = 1000) -> LRScheduler:
    """Linearly up for `warmup_steps`, then down with the square root of the step (Vaswani et al., arXiv 1706.03762)."""
    if warmup_steps < 1:
        raise ConfigError(f"schedule.warmup_steps={warmup_steps}: must be 1 or more.")
    return LambdaLR(optimizer, lambda step: min((step + 1) / warmup_steps, (warmup_steps / (step + 1)) ** 0.5))


def plateau(
    optimizer: Optimizer, steps: int, factor: float = 0.5, patience: int = 3, minimum: float = 1e-6
) -> ReduceLROnPlateau:
    """Multiply by `factor` whenever what `monitor` names has not fallen for `patience` validations."""
    if not 0 < factor < 1 or patience < 0 or minimum < 0:
        raise ConfigError(
            f"schedule.factor={factor} must be above 0 and below 1, schedule.patience={patience} and "
            f"schedule.minimum={minimum} 0 or more."
        )
    return ReduceLROnPlateau(optimizer, factor=factor, patience=patience, min_lr=minimum)


def constant(optimizer: Optimizer, steps: int) -> LRScheduler:
    """The same learning rate throughout."""
    return LambdaLR(optimizer, lambda step: 1.0)


def _share(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ConfigError(f"schedule.{name}={value}: must be a share of the steps, above 0 and below 1.")
