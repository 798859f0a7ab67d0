"""What each part of a recipe is worth: trainings that leave one out, beside the whole, on the same speakers."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from asr.benchmarks.report import Measurement, machine
from asr.errors import AsrError, ConfigError
from asr.evaluation import paired_difference
from asr.evaluation.counts import ErrorCounts
from asr.evaluation.files import SUMMARY, read_results
from asr.evaluation.result import Result

WHOLE = "the whole recipe"


def ablation(config: Mapping[str, Any], folder: Path) -> tuple[list[Measurement], dict[str, Any]]:
    """Train what is not trained yet, one after the other, and compare.

    Interrupted, it goes on where it was: trainings that are there are not repeated. The intervals are over speakers,
    whose errors are summed over the seeds; that other seeds would train other models is not in them.

    Args:
        config: with `ablation`, as in `conf/ablation/an4.yaml`; `options`, further ones of `train` for all trainings,
            as in a shell; `trained`, the folder for the runs.
        folder: not used.
    """
    if not config["trained"]:
        raise ConfigError("trained: where are the trainings to be kept? trained=DIR")
    plan, runs = config["ablation"], Path(config["trained"])
    common = [*plan["options"], *shlex.split(config["options"])]
    if any(option.startswith("seed=") for option in common):
        raise ConfigError("options: seeds are given by ablation.seeds=[…]")
    found: dict[str, list[Result]] = {}
    for name, left_out in {WHOLE: [], **plan["without"]}.items():
        found[name] = []
        for seed, fold in itertools.product(plan["seeds"], plan["folds"]):
            run = runs / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-seed{seed}-fold{fold}"
            options = [f"+experiment={plan['experiment']}", *common, *left_out, f"seed={seed}"]
            results = _results(run, [*options, "data.validation_speakers=0.25", f"data.validation_fold={fold}"])
            found[name] += [replace(result, id=f"seed {seed}, {result.id}") for result in results]
    measured = [_measure(name, results, found[WHOLE]) for name, results in found.items()]
    setting = {"recipe": plan["experiment"], "options": shlex.join(common)}
    return measured, machine(torch.device("cpu")) | setting | {"seeds": plan["seeds"], "folds": plan["folds"]}


def _results(run: Path, options: Sequence[str]) -> list[Result]:
    scored = run / "evaluation" / "validation"
    if not (scored / SUMMARY).is_file():
        print(f"training {run}", flush=True)
        run.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "asr", "train", *options]
        with run.with_suffix(".log").open("a") as log:
            code = subprocess.run([*command, f"out={run}", "resume=auto"], stdout=log, stderr=log).returncode
        if code:
            raise AsrError(f"{run}: the training has failed; see {run.with_suffix('.log')}.")
    return read_results(scored)


def _measure(name: str, results: Sequence[Result], whole: Sequence[Result]) -> Measurement:
    counts = sum((result.words for result in results), ErrorCounts())
    note = counts.format("WER").removeprefix("WER ")
    if name != WHOLE:
        difference = paired_difference(results, whole, "words")
        interval = difference.interval
        shown = interval.low > 0 or interval.high < 0
        note += f"; {100 * difference.value:+.2f} points, {interval.format()}" + ("" if shown else ": no effect shown")
    what = name if name == WHOLE else f"without {name}"
    return Measurement(name, what, 100 * counts.rate, "% WER", note=note)
