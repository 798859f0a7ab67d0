"""A training from its config to a bundle: data, pipeline, fit, scores, in one folder."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import tempfile
import time
import warnings
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console

from asr import signals
from asr.bundle import describe, load_pipeline, opened, pipeline_config, read_checkpoint
from asr.configs import check_config, flatten
from asr.data.dropped import TOO_SHORT
from asr.data.module import Fit, SpeechData
from asr.errors import CheckpointError, ConfigError
from asr.machine import choose_for_trainer
from asr.pipeline import Pipeline, build
from asr.plugins import instantiate
from asr.training.bad_steps import SkipBadSteps
from asr.training.checkpoints import AtomicCheckpoints, LastValidation, Preemption, StopAfterSteps
from asr.training.corpus import prepare_manifests
from asr.training.finish import finish
from asr.training.folder import RunFolder, is_main_process
from asr.training.language_models import final_decoder
from asr.training.leaving import explain, leave
from asr.training.lost_ranks import LostRanks
from asr.training.module import SpeechRecognition, build_augmentations
from asr.training.statistics import set_feature_statistics
from asr.training.time_limit import TimeLimit
from asr.training.transfer import Frozen, initialize, parameter_groups, with_defaults

LEARNING = ("optimizer", "schedule", "objective", "augment", "seed", "freeze", "freeze_epochs", "learning_rates")
"""Keys that a resumed run must not change, beside those of the recognizer."""

MONITORED = ("val_wer", "val_cer", "val_loss", "val_blank")
"""What a validation logs."""
PASSED_BY = {"max_epochs": "epochs", "max_steps": "max_steps", "limit_train_batches": "max_steps"}
"""Options of Lightning's trainer that the schedule would not know of, and ours in their place."""

SET_BY_US = {
    "callbacks": "choose them by callbacks=[…].",
    "logger": "choose it by logger=[…]; logger=[] is none.",
    "use_distributed_sampler": "the sampler shares the data among the ranks itself.",
    "default_root_dir": "say out=… instead.",
}
"""Options of Lightning's trainer that would have no effect, and what has."""

RESUMING: dict[str, tuple[str, ...]] = {"CsvLogger": ("resume_step",), "TensorBoardLogger": ("purge_step",)}
"""Loggers that are told where a run goes on, and the argument that says so."""

console = Console(quiet=not is_main_process())

# Lightning's advertisements and notes on its own internals
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*LeafSpec.*")
warnings.filterwarnings("ignore", ".*Total length of `list` across ranks is zero.*")  # no validation
warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")


def train(config: Mapping[str, Any]) -> None:
    """Run a training.

    Args:
        config: the composed `train.yaml`, as plain containers.

    Raises:
        AsrError: something in the config, the data or the folder cannot be used.
        SystemExit: it was interrupted.
    """
    signals.install()  # over those of a launcher
    try:
        _train(config)
    except signals.Preempted as stopped:
        raise SystemExit(leave(stopped.number, Path(config["out"]))) from None
    finally:
        signals.restore()


def _train(config: Mapping[str, Any]) -> None:
    if not 0 <= config["seed"] < 2**32:
        raise ConfigError(f"seed={config['seed']}: must be 0 or more, and below {2**32}.")
    torch.set_num_threads(config["threads"] or torch.get_num_threads())
    L.seed_everything(config["seed"], verbose=False)
    run = RunFolder(Path(config["out"]), config["resume"])
    checkpoint = run.checkpoint()
    if config["resume"] == "auto" and checkpoint is None:
        console.print(f"resume=auto there is no checkpoint to go on from in {run.path} yet: starting", markup=False)
    if checkpoint is not None:
        console.print(f"resuming    from {checkpoint}", markup=False)
    content = None if checkpoint is None else read_checkpoint(checkpoint)
    trainer, module, data = set_up(config, None if content is None else content["global_step"])
    with tempfile.TemporaryDirectory() as models:  # of some of the texts: what is wrong shows now
        final_decoder(config, module.pipeline, islice(data.texts(), 10_000), Path(models))
    data.left_out = run.path / f"left_out-rank{trainer.global_rank}.jsonl"
    if checkpoint is not None and content is not None:
        check_resumable(checkpoint, content, module, config, trainer.world_size)
        content = None  # Lightning reads its own
    if is_main_process():  # only now: what cannot start leaves no folder behind, and an old one as it is
        run.create(config, trainer.precision)
        data.write_reports(run.path)
    pipeline = module.pipeline
    started = time.monotonic()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        # the end of the run, whatever the callbacks have saved
        trainer.save_checkpoint(run.path / "checkpoints" / "last.ckpt", weights_only=False)
    except SystemExit:
        if trainer.interrupted:
            raise SystemExit(f"interrupted; go on from the last checkpoint with resume=auto out={run.path}") from None
        raise
    except (torch.cuda.OutOfMemoryError, OSError, RuntimeError) as error:
        if (explained := explain(error, run.path, trainer, module, data)) is None:
            raise
        raise explained from error
    if trainer.is_global_zero:
        signals.install(at_once=True)  # all is saved
        if number := signals.received():
            raise signals.Preempted(number)
        seconds = time.monotonic() - started
        with tempfile.TemporaryDirectory() as models:
            decoder = final_decoder(config, pipeline, data.texts(), Path(models))
            finish(config, run.path, trainer, pipeline, decoder, data, seconds, console)


def set_up(
    config: Mapping[str, Any], resume_step: int | None = None
) -> tuple[L.Trainer, SpeechRecognition, SpeechData]:
    """All that a training needs, ready to fit.

    Args:
        config: the composed `train.yaml`, as plain containers.
        resume_step: of the checkpoint that weights and feature statistics will come from; `None` for a new run.
    """
    resumed = resume_step is not None
    data = instantiate(prepare_manifests(config, console), "data")
    pipeline = build(config, texts=data.texts())
    check_config(pipeline_config(config), Path("the config"))  # now, not when the trained bundle cannot be loaded
    taken = initialize(pipeline, config) if config["init_from"] and not resumed else ""
    trainer = build_trainer(config, data.validation is not None, resume_step)
    # the product of ranks and accumulated batches makes a step: known before the sampler is made
    micro_batches = trainer.world_size * trainer.accumulate_grad_batches
    data.prepare(_fit(pipeline, config), micro_batches)
    print_overview(pipeline, data, config, trainer.precision)
    if taken:
        console.print(f"starts from {config['init_from']}: {taken}", markup=False)
    steps = config["epochs"] * data.steps_per_epoch()
    module = SpeechRecognition(
        pipeline,
        config["objective"],
        config["optimizer"],
        config["schedule"],
        config["augment"],
        steps=min(steps, config["max_steps"] or steps),
        micro_batches_per_step=micro_batches,
        references=data.validation,
        seed=config["seed"],
        monitor=config["monitor"],
        describe=lambda: describe(pipeline, config) | {"learning": {key: config[key] for key in LEARNING}},
        examples=config["examples"],
        learning_rates=config["learning_rates"],
    )
    if hasattr(module.objective, "prepare"):
        texts = map(data.train.text, data.train_indices)
        if note := module.objective.prepare(pipeline, texts, data.frames()):
            console.print(note, markup=False, soft_wrap=True)
    parameter_groups(module, config["learning_rates"])  # a wrong name shows now
    frozen = Frozen(module, config["freeze"], config["freeze_epochs"])
    if frozen.parameters:
        console.print(f"frozen      {frozen}", markup=False)
        trainer.callbacks.insert(0, frozen)  # type: ignore[attr-defined]
    # the other ranks get rank 0's, as all buffers, when DDP begins
    if pipeline.model.normalization.needs_statistics and not resumed and not taken and is_main_process():
        set_feature_statistics(pipeline.model, data, config["seed"], console)
    return trainer, module, data


def build_trainer(config: Mapping[str, Any], has_validation: bool, resume_step: int | None = None) -> L.Trainer:
    """The Lightning trainer of a config; callbacks that need a validation or a logger go where there is none.

    Args:
        config: the composed `train.yaml`.
        has_validation: whether there is a validation set.
        resume_step: where a resumed run goes on; what loggers have of later steps will come again.
    """
    for theirs, ours in PASSED_BY.items():
        if theirs in config["trainer"]:
            raise ConfigError(f"trainer.{theirs}: say {ours}=… instead; the schedule needs to know it, too.")
    for theirs, instead in SET_BY_US.items():
        if theirs in config["trainer"]:
            raise ConfigError(f"trainer.{theirs}: {instead}")
    if "overfit_batches" in config["trainer"]:
        raise ConfigError("trainer.overfit_batches: take a short manifest instead: data.train=FEW.jsonl.")
    if (precision := str(config["trainer"].get("precision"))).endswith("-true") and precision != "32-true":
        raise ConfigError(f"trainer.precision={precision}: take auto, 32-true, bf16-mixed or 16-mixed.")
    if has_validation and config["monitor"] not in MONITORED and not config["monitor"].startswith("train_"):
        known = ", ".join(MONITORED)
        raise ConfigError(f"monitor={config['monitor']}: there is {known}, and what training logs as train_….")
    for name, callback in (config["callbacks"] or {}).items():
        if not has_validation and "EarlyStopping" in callback["_target_"]:
            raise ConfigError(f"callbacks.{name}: there is no validation to stop by. Give data.validation.")
    if not has_validation and config["schedule"]["_target_"].endswith(".plateau"):
        raise ConfigError("schedule=plateau: there is no validation to watch. Give data.validation, or take another.")
    callbacks = [
        instantiate(callback, f"callbacks.{name}")
        for name, callback in (config["callbacks"] or {}).items()
        if (has_validation or not str(callback.get("monitor", "")).startswith("val_"))
        and (config["logger"] or "LearningRateMonitor" not in callback["_target_"])
    ]
    out = Path(config["out"])
    callbacks += [
        SkipBadSteps(out / "bad_steps", config["most_bad_steps"]),
        LostRanks(config["lost_rank_timeout"]),
        Preemption(out / "checkpoints"),
    ]
    callbacks.insert(0, LastValidation())  # ahead of those that save
    if config["max_steps"] or config["max_minutes"] is not None:
        callbacks.insert(0, StopAfterSteps())
    if config["max_minutes"] is not None:
        callbacks.insert(0, TimeLimit(config["max_minutes"]))  # ahead of what asks for the last step
    loggers = []
    for name, logger in (config["logger"] or {}).items():
        told = RESUMING.get(logger["_target_"].rsplit(".", 1)[-1], ()) if resume_step is not None else ()
        loggers.append(instantiate(logger, f"logger.{name}", **dict.fromkeys(told, resume_step)))
    trainer = choose_for_trainer(config["trainer"])
    plugins = trainer.pop("plugins", None) or []
    plugins = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpoints(out)]
    plugins = [instantiate(p, "trainer.plugins") if isinstance(p, Mapping) else p for p in plugins]
    trainer.setdefault("enable_checkpointing", any(isinstance(callback, Checkpoint) for callback in callbacks))
    return instantiate(
        trainer,
        "trainer",
        max_epochs=config["epochs"],
        callbacks=callbacks,
        logger=loggers,
        plugins=plugins,
        use_distributed_sampler=False,  # ours shards itself
        default_root_dir=config["out"],
    )


def _fit(pipeline: Pipeline, config: Mapping[str, Any]) -> Fit:
    # one may speed up what another has sped up
    speed = math.prod(max(1.0, getattr(a, "max_speed", 1.0)) for a in build_augmentations(config["augment"]))
    model = pipeline.model

    def frames(seconds: np.ndarray) -> np.ndarray:
        samples = torch.from_numpy(np.floor(seconds * model.sample_rate / speed)).long()
        return model.output_lengths(samples).numpy()

    def unknown(transcript: str) -> list[str]:
        return [] if pipeline.tokenizer.skip else pipeline.tokenizer.unknown(pipeline.text(transcript))

    labels = repr((describe(pipeline, config)["tokenizer"], config["text"]))
    name = hashlib.sha1(labels.encode()).hexdigest()[:12]
    return Fit(pipeline.encode, unknown, frames, model.sample_rate, name)


def print_overview(pipeline: Pipeline, data: SpeechData, config: Mapping[str, Any], precision: str) -> None:
    """What is about to be trained on what, with the text normalisation shown on an example."""
    hours = data.train_seconds.sum() / 3600
    console.print(
        f"training    {len(data.train_indices):,} utterances, {hours:.2f} h, {data.steps_per_epoch()} steps an epoch"
    )
    for path, weight, seconds in data.train_parts() if data.weights is not None else ():
        console.print(
            f"            {weight:g} × {len(seconds):,} ({seconds.sum() / 3600:.2f} h) {path}",
            markup=False,
            soft_wrap=True,
        )
    if data.dropped.parts:
        console.print(f"dropped     {data.dropped.summary()}: see {config['out']}/dropped.jsonl", markup=False)
        if data.dropped.count(TOO_SHORT) > 0.01 * len(data.train_indices):
            console.print(
                "            many are too short: lower encoder.stride, or take longer units, such as tokenizer=words"
            )
    if data.validation is not None:
        speakers = {data.validation[int(k)].speaker for k in data.validation_indices} - {None}
        hours = data.validation_seconds.sum() / 3600
        named = f"{len(speakers)} speakers" if speakers else "no speakers named: it may hold voices trained on"
        console.print(f"validation  {len(data.validation_indices):,} utterances, {hours:.2f} h, {named}")
        if data.validation_unknown:
            console.print(
                f"            {data.validation_unknown:,} with unknown characters: scored, but without a loss"
            )
    example = data.train[int(data.train_indices[0])].text or ""
    console.print(f"text        {example!r} → {pipeline.text(example)!r}", markup=False)
    if config["max_minutes"] is not None:
        console.print(f"time        {config['max_minutes']:g} minutes at most (max_minutes), in fewer steps if need be")
    labels = len(pipeline.tokenizer)
    parameters = sum(p.numel() for p in pipeline.model.parameters())
    console.print(
        f"model       {parameters / 1e6:.2f} M parameters, {labels} labels, "
        f"{1000 * pipeline.model.frame_seconds:.0f} ms a frame, trained in {precision}"
    )


def check_resumable(
    checkpoint: Path,
    found: Mapping[str, Any],
    module: SpeechRecognition,
    config: Mapping[str, Any],
    world_size: int,
) -> None:
    """Refuse to resume what the config no longer describes.

    That is other stages or labels, or another optimizer, schedule or length of it, objective, augmentation or seed.

    Raises:
        CheckpointError: with the keys that differ; or there is nothing but weights.
    """
    if "optimizer_states" not in found:
        raise CheckpointError(
            f"{checkpoint}: cannot be resumed: it holds the weights alone. Start from them by init_from={checkpoint}."
        )
    learning = {key: config[key] for key in LEARNING}
    old = found["recognizer"]["config"] | learning | found["recognizer"].get("learning", {})
    old = flatten(old | {"objective": with_defaults(old["objective"])})  # a release before may have had fewer options
    new = flatten(pipeline_config(config) | learning | {"objective": with_defaults(config["objective"])})

    def free(key: str) -> bool:
        """The decoder is no part of it, and folders of noise and lexicons may move."""
        moved = re.fullmatch(r"augment\..*\.path|objective\.phones", key) and old.get(key) and new.get(key)
        return bool(moved) or key.partition(".")[0] == "decoder"

    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key) and not free(key)]
    labels = load_pipeline(opened(checkpoint, found)).tokenizer.labels
    if not changed and labels != module.pipeline.tokenizer.labels:
        changed = [f"the tokenizer's labels ({len(labels)}, now {len(module.pipeline.tokenizer.labels)} or other ones)"]
    steps = [schedule.get("total_steps") for schedule in found.get("lr_schedulers", ())]
    if not changed and steps and steps[0] not in (None, module.steps + 1):
        changed = [f"the steps of the schedule ({steps[0] - 1}, now {module.steps}: epochs, max_steps or the data)"]
    place = found.get("callbacks", {}).get("TimeLimit", {}).get("place", 0)
    if not changed and config["max_minutes"] is None and steps and steps[0] and place > found["global_step"]:
        changed = ["max_minutes, which has shortened the schedule"]
    if not changed and _learnt(found["state_dict"]) != _learnt(module.state_dict()):
        changed = ["what the objective learns (the phones of the lexicon or the transcripts)"]
    averages = any(callback["_target_"].endswith(".Ema") for callback in (config["callbacks"] or {}).values())
    if not changed and averages != ("current_model_state" in found):
        changed = ["whether the weights are averaged (callbacks: ema)"]
    if changed:
        raise CheckpointError(
            f"{checkpoint}: cannot be resumed, because this has changed: {', '.join(changed)}. "
            "Resume with the options of the run (its config.yaml), or start a new one in another out=."
        )
    before = found.get("world_size", world_size)
    if before != world_size:
        console.print(
            f"            on {world_size} processes, after {before}: the same steps, but for rounding, "
            "and batch norm's running statistics, which are those of rank 0"
        )


def _learnt(state: Mapping[str, Any]) -> dict[str, Any]:
    """What an objective has of its own: the shapes of its weights, and all else as it is."""
    tensors = {name: x for name, x in state.items() if name.startswith("objective.") and isinstance(x, torch.Tensor)}
    return {name: x.shape if x.is_floating_point() else x.tolist() for name, x in tensors.items()}
