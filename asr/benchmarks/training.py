"""Training speed: our steps, as a training runs them, beside the bare kernels on the same micro-batches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import Profiler

from asr.benchmarks.kernels import BareKernels, Shape
from asr.benchmarks.noise import write_noise
from asr.benchmarks.report import Measurement, machine, peak_memory, synchronize
from asr.configs import map_options
from asr.errors import ConfigError
from asr.training.run import set_up
from asr.types import Batch

NEXT_BATCH = "[_TrainingEpochLoop].train_dataloader_next"
"""Lightning's name for the time in `next(loader)`."""


@dataclass
class Block:
    """Seconds of some neighbouring steps, and of the bare kernels on their micro-batches."""

    ours: float = 0.0
    waiting: float = 0.0
    audio: float = 0.0
    shapes: list[Shape] = field(default_factory=list)
    packed: float = 0.0
    padded: float = 0.0


class Waiting(Profiler):
    """Sums the seconds in `next(loader)`, as Lightning's loop sees them."""

    seconds = 0.0

    def start(self, action_name: str) -> None:
        if action_name == NEXT_BATCH:
            self.started = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name == NEXT_BATCH:
            self.seconds += time.perf_counter() - self.started

    def describe(self) -> None:
        """Print nothing."""


class TakingTurns(L.Callback):
    """Times blocks of training steps, the bare kernels after each, and then ends the training.

    The clock runs from the end of one step to the end of the next, so it sees all that Lightning does in between.
    While the bare kernels run, the loader reads ahead: the steps that use that up are not counted, or waiting for data
    would look shorter than it is. The first block warms up.

    Args:
        blocks, steps: how many, and measured steps of each.
        waiting: the profiler of the trainer.
    """

    def __init__(self, blocks: int, steps: int, waiting: Waiting):
        self.wanted, self.steps, self.waiting = blocks + 1, steps, waiting
        self.blocks: list[Block] = []
        self.memory = 0.0
        self.recorder: Any = None
        self.idle: float | None = None
        """The share of the time in which nothing runs on the GPU, under the recorder, which itself costs time."""

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        loader: Any = trainer.train_dataloader
        self.skip = loader.num_workers * (loader.prefetch_factor or 0)
        self.device = trainer.strategy.root_device
        self.autocast = trainer.strategy.precision_plugin.forward_context
        module.model.encoder.register_forward_hook(self._remember)
        self._open()

    def _remember(self, encoder: Any, inputs: Any, output: tuple) -> None:
        self.frames = output[1]

    def _open(self) -> None:
        self.block, self.done = Block(), 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._start_clock()

    def _start_clock(self) -> None:
        synchronize(self.device)
        self.waiting.seconds = 0.0
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.done += 1
        if self.recorder is not None:
            if self.done == self.steps:
                synchronize(self.device)
                seconds = time.perf_counter() - self.started
                self.recorder.stop()
                ranges = [event.time_range for event in self.recorder.events() if event.device_type.name == "CUDA"]
                self.idle = 1 - busy([(r.start, r.end) for r in ranges]) / (1e6 * seconds)
                trainer.should_stop = True
            return
        skip = self.skip if self.blocks else 1
        if self.done == skip:
            self._start_clock()
        if self.done <= skip:
            return
        block = self.block
        if len(batch):
            views = len(self.frames) // len(batch)  # two of each utterance with objective=cr_ctc
            labels, label_lengths = batch.labels.repeat(views, 1), batch.label_lengths.repeat(views)
            block.shapes.append(Shape(self.frames.cpu(), labels, label_lengths))
            block.audio += float(batch.lengths.sum()) / module.model.sample_rate
        if self.done < skip + (self.steps if self.blocks else 2):
            return
        synchronize(self.device)
        block.ours = time.perf_counter() - self.started
        block.waiting = self.waiting.seconds
        self.memory = max(self.memory, peak_memory(self.device))
        kernels = BareKernels(module.model.encoder, len(module.pipeline.tokenizer), self.autocast)
        block.packed = self._time(kernels, block.shapes, packed=True)
        block.padded = self._time(kernels, block.shapes, packed=False)
        self.blocks.append(block)
        if len(self.blocks) < self.wanted:
            self._open()
        elif self.device.type == "cuda":
            self._record()
        else:
            trainer.should_stop = True

    def _record(self) -> None:
        """From now on, all that runs on the GPU."""
        self.recorder = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self.recorder.start()
        self.done = 0
        self._start_clock()

    def _time(self, kernels: BareKernels, shapes: list[Shape], packed: bool) -> float:
        seconds = 0.0
        for shape in shapes:
            inputs = kernels.inputs(shape, packed)
            synchronize(self.device)
            started = time.perf_counter()
            kernels.run(shape, inputs)
            synchronize(self.device)
            seconds += time.perf_counter() - started
        return seconds


def busy(ranges: list[tuple[float, float]]) -> float:
    """The time in which at least one of these (start, end) lasts."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(ranges):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def training(config: Mapping[str, Any], folder: Path) -> tuple[list[Measurement], dict[str, Any]]:
    """Train for a while, by the very trainer, module and loader of `asr.training`.

    Args:
        config: the composed `benchmark.yaml`.
        folder: for the noise and what the training writes.

    Returns:
        what was measured, medians over the blocks; and the setting.
    """
    torch.set_num_threads(config["threads"] or torch.get_num_threads())
    L.seed_everything(config["seed"], verbose=False)
    trainer: Any
    # the training is stopped when all is measured
    trainer, module, speech = set_up({**advanced(config, folder), "epochs": 10**5})
    if trainer.world_size != 1:
        raise ConfigError("benchmark training: takes one device. Say trainer.devices=1.")
    trainer.profiler = Waiting()
    turns = TakingTurns(config["blocks"], config["steps"], trainer.profiler)
    trainer.callbacks.append(turns)
    trainer.fit(module, datamodule=speech)

    blocks = turns.blocks[1:]
    padding = [float(1 - s.frames.sum() / (len(s.frames) * s.frames.max())) for block in blocks for s in block.shapes]
    measured = [
        _over(blocks, "step", "our step", lambda b: 1000 * b.ours / config["steps"], "ms"),
        _over(blocks, "packed", "bare kernels, packed", lambda b: 1000 * b.packed / config["steps"], "ms"),
        _over(blocks, "ratio", "our step / packed", lambda b: b.ours / b.packed, "", 1.25),
        _over(blocks, "padded", "bare kernels, padded", lambda b: 1000 * b.padded / config["steps"], "ms"),
        _over(blocks, "padded_ratio", "our step / padded", lambda b: b.ours / b.padded, ""),
        _over(blocks, "waiting", "waiting for data", lambda b: 100 * b.waiting / b.ours, "% of the step", 3.0),
        _over(blocks, "speed", "speed", lambda b: b.audio / b.ours, "h of audio / h"),
        Measurement("memory", "peak memory", turns.memory, "MiB"),
    ]
    if turns.idle is not None:
        measured.append(Measurement("idle", "GPU idle", 100 * turns.idle, "% of the step"))
    setting = machine(turns.device) | {
        "precision": trainer.precision,
        "model": f"{sum(p.numel() for p in module.model.parameters()) / 1e6:.2f} M parameters",
        "data": config["manifest"] or f"noise, {config['utterances']} utterances",
        "steps": f"{len(blocks)} × {config['steps']} micro-batches of {config['data']['batch_seconds']:g} s",
        "padding": f"{100 * statistics.mean(padding):.1f} %",
        "workers": speech.workers,
    }
    return measured, setting


def advanced(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The config of a training on `manifest` or noise, without validation, in which all with a start_step has begun.

    Args:
        config: the composed `benchmark.yaml`.
        folder: for the noise.
    """
    manifest = config["manifest"] or str(write_noise(folder / "noise", config["utterances"], config["seed"]))
    data = {**config["data"], "train": manifest, "validation": None, "validation_speakers": 0, "test": None}

    def begin(key: str, value: Any) -> Any:
        return 0 if key.rpartition(".")[2] == "start_step" else value

    begun = {group: map_options(config[group] or {}, begin) for group in ("objective", "augment")}
    return {**config, **begun, "data": data, "max_steps": None, "max_minutes": None}


def _over(
    blocks: list[Block], name: str, what: str, of: Callable[[Block], float], unit: str, target: float | None = None
) -> Measurement:
    """The median over the blocks, with the least and the most."""
    values = [of(block) for block in blocks]
    least, most = (Measurement("", "", value, "").format() for value in (min(values), max(values)))
    return Measurement(name, what, statistics.median(values), unit, target, f"{least} – {most}")
