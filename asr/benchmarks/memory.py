"""The longest batches that a GPU holds, found before a run starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from asr.benchmarks.report import Measurement, machine, peak_memory, synchronize
from asr.benchmarks.training import advanced
from asr.data.module import SpeechData
from asr.errors import ConfigError
from asr.training.module import SpeechRecognition
from asr.training.run import set_up

PRECISION = 1.05
"""The ratio of what is known not to fit to what is known to fit, at the end of the search."""
RESERVE = 0.1
"""The share that is left free: the memory of a long run is in pieces, and further ranks need buffers."""


def memory(config: Mapping[str, Any], folder: Path) -> tuple[list[Measurement], dict[str, Any]]:
    """Try training steps of ever longer batches, with the options of a training.

    Args:
        config: the composed `benchmark.yaml`.
        folder: for the noise, and what the training would write.

    Raises:
        ConfigError: there is no CUDA GPU, or not even the shortest utterance fits.
    """
    if not torch.cuda.is_available():
        raise ConfigError("benchmark memory: needs a CUDA GPU, and torch finds none here. Run it where you will train.")
    trainer, module, speech = set_up(advanced(config, folder))
    device = trainer.strategy.root_device
    step = Step(trainer, module.to(device), speech)
    found = largest(step, start=2 * speech.train_seconds.max())
    step(found)
    measured = [
        Measurement("batch_seconds", "data.batch_seconds to take", (1 - RESERVE) * found, "s"),
        Measurement("largest", "the largest that fits", found, "s"),
        Measurement("memory", "peak memory of that", peak_memory(device), "MiB"),
        Measurement("total", "memory of the GPU", torch.cuda.mem_get_info(device)[1] / 2**20, "MiB"),
    ]
    setting = machine(device) | {
        "precision": trainer.precision,
        "model": f"{sum(p.numel() for p in module.model.parameters()) / 1e6:.2f} M parameters",
        "data": config["manifest"] or f"noise, {config['utterances']} utterances",
        "longest": f"{speech.train_seconds.max():.1f} s",
    }
    return measured, setting


class Step:
    """Whether training steps of batches of some padded duration fit: few long utterances, and many short ones.

    Args:
        trainer, module, data: of a training; the module on its device.
    """

    def __init__(self, trainer: L.Trainer, module: SpeechRecognition, data: SpeechData):
        module.trainer = trainer
        self.module, self.data, self.device = module.train(), data, module.device
        self.autocast = trainer.precision_plugin.forward_context
        self.optimizer = module.configure_optimizers()["optimizer"]
        self.dataset = data.loader(data.train, [], persistent=False).dataset
        order = np.argsort(data.train_seconds, kind="stable")
        few = max(1, len(order) // 20)
        self.ends = order[: -few - 1 : -1], order[:few]

    def __call__(self, batch_seconds: float) -> bool:
        try:
            for places in self.ends:
                size = max(1, int(batch_seconds / self.data.train_seconds[places].max()))
                # an utterance that comes twice takes as much memory as two
                self._train([int(k) for k in self.data.train_indices[np.resize(places, size)]])
        except (torch.cuda.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.cuda.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):  # cuDNN's
                raise
            return False
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return True

    def _train(self, indices: list[int]) -> None:
        batch, _ = self.dataset[[(index, len(indices)) for index in indices]]
        batch = batch.to(self.device)
        with self.autocast():
            losses, _ = self.module.losses(batch)
        losses.mean().backward()
        self.optimizer.step()
        synchronize(self.device)


def largest(fits: Callable[[float], bool], start: float, most: float = 1e6) -> float:
    """The largest number that fits, to 5 %, where all below it fit, too.

    Raises:
        ConfigError: not even a 64th of `start` does.
    """
    low = start
    while not fits(low):
        low /= 2
        if low < start / 64:
            raise ConfigError(
                "benchmark memory: one short utterance does not fit: take a smaller model (encoder.width=…)."
            )
    high = 2 * low
    while high <= most and fits(high):
        low, high = high, 2 * high
    while high / low > PRECISION:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
