"""What the commands do, each from its config as plain containers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from asr import plugins
from asr.errors import AsrError, ConfigError

AUDIO = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".sph", ".aiff", ".aif", ".au"}


def train(config: dict[str, Any]) -> None:
    """Train a recognizer."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from asr.training.run import train

    try:
        train(config)
    except MisconfigurationException as error:  # Lightning's word for a wrong option, such as a GPU that is not there
        raise ConfigError(f"trainer, callbacks or logger: {error}") from None


def prepare(config: dict[str, Any]) -> None:
    """Turn a corpus into manifests, and print what was kept and dropped."""
    if config["corpus"] is None:
        raise ConfigError(f"corpus: which one? corpus={'|'.join(plugins.config_names('corpus'))}")
    console = Console()
    corpus = plugins.instantiate(config["corpus"], "corpus")
    report = corpus.prepare(Path(config["out"]))
    console.print(report.table())
    for path in report.manifests.values():
        console.print(str(path), soft_wrap=True)
    text = plugins.instantiate(config["text"], "text")
    from asr.data.manifest import read_manifest

    example = next(iter(read_manifest(next(iter(report.manifests.values()))))).text or ""
    console.print(f"text in training: {example!r} → {text(example)!r}", markup=False)


def evaluate(config: dict[str, Any]) -> None:
    """Score a recognizer on a manifest; write hypotheses, counts and aligned errors."""
    _set_threads(config["threads"])
    from asr.evaluation.decode import evaluate_manifest
    from asr.evaluation.files import check_folder, read_results, write_results
    from asr.evaluation.report import print_evaluation, summarize
    from asr.recognizer import load

    manifest = Path(config["manifest"])
    checkpoint = Path(config["checkpoint"])
    out = Path(config["out"]) if config["out"] else _beside(checkpoint) / "evaluation" / manifest.stem
    other = read_results(config["compare"]) if config["compare"] else None
    recognizer = load(checkpoint, config["device"], config["decoder"], config["batch_seconds"], config["channel"])
    check_folder(out, config["overwrite"] or not config["out"])
    results, seconds = evaluate_manifest(recognizer, manifest)
    groups = [config["group_by"]] if isinstance(config["group_by"], str) else config["group_by"] or ()
    evaluation = summarize(results, groups, seconds, other, str(config["compare"]))
    print_evaluation(evaluation, Console())
    summary = {"command": " ".join(sys.argv), "manifest": str(manifest), "checkpoint": str(checkpoint)}
    write_results(out, results, evaluation.as_dict() | summary, overwrite=True)
    print(f"results: {out}")


def _beside(checkpoint: Path) -> Path:
    return checkpoint if checkpoint.is_dir() else checkpoint.parent


def transcribe(config: dict[str, Any], files: list[str] | None = None) -> None:
    """Transcribe files and folders; go on when one is broken, and exit with status 1 at the end."""
    if not files:
        raise ConfigError("Which audio? Name files or folders: transcribe checkpoint=… a.wav talks/")
    _set_threads(config["threads"])
    from asr.recognizer import load
    from asr.types import Utterance
    from asr.writers import writer

    write = writer(config["format"])
    recognizer = load(
        config["checkpoint"], config["device"], config["decoder"], config["batch_seconds"], config["channel"]
    )
    utterances = [Utterance(path) for path in find_audio(files)]
    if not utterances:
        raise ConfigError(f"No audio files in {', '.join(files)} (looked for {', '.join(sorted(AUDIO))}).")
    failed = 0
    waiting: dict[int, Any] = {}
    following = 0
    for index, result in recognizer.transcribe_each(utterances):
        waiting[index] = result
        while following in waiting:  # printed in the order in which they were named
            result = waiting.pop(following)
            following += 1
            if isinstance(result, AsrError):
                failed += 1
                print(f"error: {result}", file=sys.stderr)
            else:
                print(write(result), flush=True)
    if failed:
        print(f"error: {failed} of {len(utterances)} files could not be transcribed.", file=sys.stderr)
        raise SystemExit(1)


def find_audio(paths: list[str]) -> Iterator[str]:
    """The files named, and the audio files in the folders named, sorted."""
    for path in paths:
        if os.path.isdir(path):
            found = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
            yield from sorted(name for name in found if os.path.splitext(name)[1].lower() in AUDIO)
        else:
            yield path


def benchmark(config: dict[str, Any], names: list[str] | None = None) -> None:
    """Measure speed."""
    from asr.benchmarks import run

    run(" ".join(names or ()), config)


def list_plugins() -> None:
    """Print every component with its provider and class, and what is wrong with any."""
    from rich.table import Table

    console = Console()
    table = Table("group", "name", "from", "class", "", box=None, pad_edge=False)
    for c in plugins.components((*plugins.COMPONENT_GROUPS, "experiment")):
        table.add_row(c.group, c.name, c.provider, c.target, c.problem)
    console.print(table)
    for problem in plugins.problems():
        console.print(f"problem: {problem}", markup=False, soft_wrap=True)


def _set_threads(threads: int | None) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)
