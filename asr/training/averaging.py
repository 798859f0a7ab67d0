"""Several checkpoints of the same recognizer → one, of their mean weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asr.bundle import load_config, load_pipeline, read_checkpoint
from asr.configs import flatten
from asr.errors import CheckpointError, ConfigError
from asr.pipeline import Pipeline
from asr.training.transfer import NO_FILES


def average(checkpoints: Sequence[str | Path]) -> tuple[Pipeline, dict[str, Any]]:
    """The pipeline of the first checkpoint with the mean of all their weights, and its config.

    Statistics such as BatchNorm's are averaged like weights; whole numbers, its counts, are the first's.

    Args:
        checkpoints: bundles, runs' folders or `.ckpt` files, alike in all but their weights and decoders.

    Raises:
        CheckpointError: one cannot be loaded, or is of another config or vocabulary than the first.
    """
    if len(checkpoints) < 2:
        raise ConfigError(f"checkpoints: an average takes two or more, found {len(checkpoints)}.")
    pipeline, config = load_pipeline(checkpoints[0], NO_FILES), load_config(checkpoints[0])
    state = pipeline.model.state_dict()
    sums = {name: value.double() for name, value in state.items() if value.is_floating_point()}
    for checkpoint in checkpoints[1:]:
        other = load_pipeline(checkpoint, NO_FILES)
        one, two = flatten(config), flatten(load_config(checkpoint))
        changed = [
            key for key in sorted({*one, *two}) if one.get(key) != two.get(key) and not key.startswith("decoder")
        ]
        if not changed and other.tokenizer.labels != pipeline.tokenizer.labels:
            changed = ["the tokenizer's labels"]
        if changed:
            raise CheckpointError(
                f"{checkpoint}: cannot be averaged with {checkpoints[0]}: they differ in {', '.join(changed)}."
            )
        weights = other.model.state_dict()
        sums = {name: value + weights[name].double() for name, value in sums.items()}
    means = {name: (value / len(checkpoints)).to(state[name].dtype) for name, value in sums.items()}
    pipeline.model.load_state_dict(state | means)
    return pipeline, config


def last_checkpoints(run: str | Path, count: int) -> list[Path]:
    """The `.ckpt` files of a run's `count` last steps of which there are any, earliest first.

    Where there are snapshots (`callbacks=[…,snapshots]`), they and `last.ckpt` are those: at even distances.

    Raises:
        CheckpointError: it has not as many.
    """
    steps: dict[int, Path] = {}
    folder = Path(run, "checkpoints")
    snapshots = sorted(folder.glob("snapshot-*.ckpt"))
    for path in [*snapshots, *folder.glob("last.ckpt")] if snapshots else sorted(folder.glob("*.ckpt")):
        steps.setdefault(read_checkpoint(path)["global_step"], path)  # the best may be the last, too
    if len(steps) < count:
        raise CheckpointError(
            f"run={run}: has checkpoints of {len(steps)} steps, and last={count} are asked for. "
            "A training keeps more with callbacks=[checkpoints,progress,snapshots], or callbacks.best.save_top_k=."
        )
    return [steps[step] for step in sorted(steps)[-count:]]
