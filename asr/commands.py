"""What the commands do, each from its config as plain containers."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import plugins
from asr.errors import AsrError, ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from asr.recognizer import Recognizer


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
    console = _console()
    corpus = plugins.instantiate(config["corpus"], "corpus")
    shards = config["shards"] and Path(config["shards"])
    if shards:
        from asr.corpora.shards import check_shards, write_shards

        check_shards(shards, config["shard_format"])
    report = corpus.prepare(Path(config["out"]))
    console.print(report.table())
    if shards:
        report = write_shards(report, shards, config["shard_size"], config["shard_format"])
    for path in report.manifests.values():
        console.print(str(path), soft_wrap=True, markup=False)
    text = plugins.instantiate(config["text"], "text")
    from asr.data.manifest import read_manifest

    example = next(iter(read_manifest(next(iter(report.manifests.values()))))).text or ""
    console.print(f"text in training: {example!r} → {text(example)!r}", markup=False)


def evaluate(config: dict[str, Any]) -> None:
    """Score a recognizer on a manifest; write hypotheses, counts and aligned errors."""
    from asr.bundle import open_checkpoint, own_paths
    from asr.evaluation.decode import evaluate_manifest
    from asr.evaluation.files import check_folder, read_results, write_results
    from asr.evaluation.report import print_evaluation, summarize

    manifest = Path(config["manifest"])
    checkpoint = Path(config["checkpoint"])
    decoder = config["decoder"]
    if decoder is None:
        found = open_checkpoint(config["checkpoint"])
        decoder = own_paths(found.config["decoder"], found.path)
    about = {"decoder": decoder, "engine": config["engine"], "channel": config["channel"]}
    out = Path(config["out"]) if config["out"] else results_folder(checkpoint, manifest, about)
    other = read_results(config["compare"]) if config["compare"] else None
    recognizer = _load(config)
    check_folder(out, config["overwrite"] or not config["out"])
    results, seconds = evaluate_manifest(recognizer, config["manifest"])
    if not config["out"]:  # another evaluation may have written there meanwhile
        out = results_folder(checkpoint, manifest, about)
    groups = [config["group_by"]] if isinstance(config["group_by"], str) else config["group_by"] or ()
    about |= {"manifest": str(manifest.resolve()), "checkpoint": str(checkpoint.resolve())}
    about |= {"command": shlex.join(sys.argv)}
    try:
        evaluation = summarize(results, groups, seconds, other, str(config["compare"]))
    except AsrError:  # of groups or what to compare with: no reason to lose the results
        write_results(out, results, summarize(results, (), seconds).as_dict() | about, overwrite=True)
        print(f"results: {out}")
        raise
    print_evaluation(evaluation, _console())
    write_results(out, results, evaluation.as_dict() | about, overwrite=True)
    print(f"results: {out}")


def results_folder(checkpoint: Path, manifest: Path, about: dict[str, Any] | None = None) -> Path:
    """Where an evaluation's results go when no `out` is given: to the run, and never over another evaluation's.

    Args:
        checkpoint, manifest: as given.
        about: what else tells evaluations apart, by the keys of a summary: decoder, engine, channel.

    Returns:
        `RUN/evaluation/<manifest>`, for a bundle outside a run `evaluation/<bundle>/<manifest>` below the current
        directory; with `-2`, `-3`, … where other results lie there: of another manifest or checkpoint, or other ones
        of `about`.
    """
    from asr.evaluation.files import FILES, SUMMARY

    path = checkpoint.resolve()
    above = path.parent.parent if path.is_file() and path.parent.name == "checkpoints" else path.parent
    in_run = not _is_bundle(above) and ((above / "config.yaml").is_file() or (above / "checkpoints").is_dir())
    run = path if path.is_dir() and not _is_bundle(path) else above if in_run else None
    folder = run / "evaluation" if run else Path("evaluation", path.name if path.is_dir() else path.stem)
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder

    def is_ours(out: Path) -> bool:
        try:
            summary = json.loads((out / SUMMARY).read_text("utf-8"))
            # a training's own evaluation names no checkpoint: it is of the run's bundle
            evaluated = Path(summary.get("checkpoint", run or ""))
            same = Path(summary["manifest"]).resolve() == manifest.resolve()
            summary = {"engine": "auto"} | summary
            same = same and all(summary.get(key) == value for key, value in (about or {}).items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        return same and _bundle_of(evaluated.resolve()) == _bundle_of(path)

    candidates = (folder / (f"{manifest.stem}-{k}" if k > 1 else manifest.stem) for k in count(1))
    return next(out for out in candidates if is_ours(out) or not any((out / file).exists() for file in FILES))


def _is_bundle(folder: Path) -> bool:
    return (folder / "model.safetensors").is_file()


def _bundle_of(checkpoint: Path) -> Path:
    """The bundle that a run's folder stands for."""
    return checkpoint / "bundle" if _is_bundle(checkpoint / "bundle") else checkpoint


def transcribe(config: dict[str, Any], files: list[str] | None = None) -> None:
    """Transcribe files and folders, or standard input live."""
    from asr.transcription import transcribe

    transcribe(config, files or [])


def _load(config: dict[str, Any]) -> Recognizer:
    from asr.recognizer import load

    return load(
        config["checkpoint"], config["device"], config["decoder"], config["batch_seconds"], config["channel"],
        config["engine"], config["threads"],
    )  # fmt: skip


def align(config: dict[str, Any], files: list[str] | None = None) -> None:
    """Find the words of transcripts in their audio; go on when one fails, and exit with status 1 at the end."""
    from asr.alignments import FORMATS, AlignmentFolder, format_alignment, print_suspicious, recording
    from asr.data.index import ManifestIndex
    from asr.writers import check_formats

    formats = [config["format"]] if isinstance(config["format"], str) else config["format"] or []
    check_formats(formats, FORMATS)
    manifest = ManifestIndex(config["manifest"]) if config["manifest"] else None
    if manifest is not None and (files or config["transcript"] is not None):
        raise ConfigError("manifest=… names the audio and holds the texts: leave the audio file and transcript=… out.")
    if manifest is not None and not config["out"]:
        raise ConfigError("out: has to be given with a manifest: out=DIR")
    utterances = [recording(files or [], config["transcript"])] if manifest is None else list(manifest)
    _set_threads(config["threads"])
    from rich.progress import track

    from asr.aligner import align_each
    from asr.recognizer import load

    recognizer = load(config["checkpoint"], config["device"], None, config["batch_seconds"], config["channel"])

    def reported() -> Iterator[tuple[int, Any]]:
        for index, result in align_each(recognizer, utterances):
            if isinstance(result, AsrError):
                line = "" if manifest is None else f"{manifest.path}, line {manifest.rows['line'][index]}: "
                print(f"error: {line}{result}", file=sys.stderr)
            yield index, result

    if not config["out"]:
        [(_, result)] = reported()
        if isinstance(result, AsrError):
            raise SystemExit(1)
        print(format_alignment(formats[0], result, utterances[0], config["channel"]))
        return
    folder = AlignmentFolder(config["out"], formats, utterances, config["overwrite"], config["channel"])
    rows = folder.write(track(reported(), "aligning", total=len(utterances), transient=True))
    if manifest is not None:
        print_suspicious(rows, config["worst"], _console())
    print(f"alignments: {folder.folder}")
    if failed := sum("error" in row for row in rows):
        print(f"error: {failed} of {len(utterances)} utterances could not be aligned.", file=sys.stderr)
        raise SystemExit(1)


def export(config: dict[str, Any]) -> None:
    """Write a recognizer as one ONNX file."""
    from asr.bundle import load_config, open_checkpoint
    from asr.export import export

    out = export(config["checkpoint"], config["out"], config["quantize"], config["overwrite"])
    print(f"exported: {out}  ({out.stat().st_size / 1e6:.1f} MB, compared with torch)")
    if open_checkpoint(out).config["decoder"] != load_config(config["checkpoint"])["decoder"]:
        print("note: the recognizer's own decoder reads files, which stay behind: the exported one decodes greedily.")


def info(checkpoint: str) -> None:
    """Print what a recognizer is."""
    from asr.info import describe_checkpoint

    for what, value in describe_checkpoint(checkpoint):
        print(f"{what:<11} {value}")


def average(config: dict[str, Any]) -> None:
    """Average the weights of checkpoints into a bundle; score it beside its parts."""
    _set_threads(config["threads"])
    from asr.bundle import FILES, save_bundle
    from asr.data.index import ManifestIndex
    from asr.evaluation.decode import evaluate_manifest
    from asr.evaluation.report import summarize
    from asr.recognizer import load
    from asr.training import averaging

    out = Path(config["out"])
    if out.exists() and not (config["overwrite"] and _is_bundle(out)):
        raise ConfigError(f"out={out}: is there already. Take another, or replace a bundle with overwrite=true.")
    if others := [path.name for path in out.glob("*") if path.name not in FILES]:
        raise ConfigError(f"out={out}: holds {', '.join(sorted(others))}, too. Move it away, or take another.")
    if bool(config["checkpoints"]) == bool(config["run"]):
        raise ConfigError("Average what? Name checkpoints=[A.ckpt,B.ckpt], or run=RUN for its last ones.")
    manifest = ManifestIndex(config["manifest"]) if config["manifest"] else None  # what is wrong with it shows now
    named = config["checkpoints"]
    parts = [named] if isinstance(named, str) else named or averaging.last_checkpoints(config["run"], config["last"])
    pipeline, found = averaging.average(parts)
    names = "".join(f"- {part}\n" for part in parts)
    save_bundle(out, pipeline, found, f"# Mean of checkpoints\n\n{names}\nCommand: `{shlex.join(sys.argv)}`\n")
    if manifest is not None:
        for checkpoint in (*parts, out):
            recognizer = load(
                checkpoint, config["device"], config["decoder"], config["batch_seconds"], config["channel"]
            )
            total = summarize(evaluate_manifest(recognizer, config["manifest"])[0]).total
            print(f"{total.words.format('WER')}, {total.characters.format('CER')}: {checkpoint}")
    print(f"average: {out}")


def tune_decoder(config: dict[str, Any]) -> None:
    """Search a decoder's options; write the best as a config, or into the bundle."""
    _set_threads(config["threads"])
    from asr.bundle import find_bundle, install_decoder, resolve_paths
    from asr.evaluation import tuning
    from asr.evaluation.files import check_folder
    from asr.recognizer import load

    if config["metric"] not in tuning.COUNTS:
        raise ConfigError(f"metric={config['metric']}: must be wer or cer.")
    decoder = tuning.absolute_paths(resolve_paths(config["decoder"], config["checkpoint"]))
    if config["install"]:
        find_bundle(config["checkpoint"])
    out = Path(config["out"])
    if config["name"] in plugins.config_names("decoder"):
        raise ConfigError(f"name={config['name']}: decoder={config['name']} is another config. Take another name.")
    path = out / "decoder" / f"{config['name']}.yaml"
    if path.exists() and not config["overwrite"]:
        raise ConfigError(f"{path}: is there already. Take another out= or name=, or replace it with overwrite=true.")
    check_folder(out, overwrite=True)
    space = tuning.search_space(decoder, config["search"])
    recognizer = load(config["checkpoint"], config["device"], None, config["batch_seconds"], config["channel"])
    plugins.instantiate(decoder, "decoder", tokenizer=recognizer.pipeline.tokenizer)  # what is wrong shows at once
    speech = tuning.load_speech(recognizer, config["manifest"], out)
    before = tuning.count_errors(recognizer, speech, config["metric"])
    trials = tuning.try_options(recognizer, speech, decoder, space, config["metric"])
    best = trials[0]
    console = _console()
    console.print(tuning.trials_table(trials, config["metric"]))
    print(before.format(f"the recognizer's own decoder: {config['metric'].upper()}"))
    print(best.counts.format(f"the best: {config['metric'].upper()}"))
    found = {**tuning.absolute_paths(config["decoder"]), **best.options}
    comment = f"{best.counts.format(config['metric'].upper())} on {config['manifest']}\n{shlex.join(sys.argv)}"
    tuning.write_config(found, path, comment)
    print(f"to use it: --config-dir {shlex.quote(str(out))} decoder={config['name']}")
    if config["install"]:
        print(f"installed: {install_decoder(config['checkpoint'], {**decoder, **best.options})}")


def label_prior(config: dict[str, Any]) -> None:
    """Write how often a recognizer emits each label of its tokenizer, for the decoder."""
    _set_threads(config["threads"])
    from asr.evaluation.prior import estimate_prior, write_prior
    from asr.recognizer import load

    out = Path(config["out"])
    if out.exists() and (out.is_dir() or not config["overwrite"]):
        raise ConfigError(f"out={out}: is there already. Take another, or replace a file with overwrite=true.")
    recognizer = load(config["checkpoint"], config["device"], None, config["batch_seconds"], config["channel"])
    prior = estimate_prior(recognizer, config["manifest"])
    write_prior(prior, out)
    blank = next(iter(prior.values()))
    print(f"prior: {config['out']} (blank {100 * blank:.1f} %)")


def train_lm(config: dict[str, Any]) -> None:
    """Train a language model for the decoder."""
    _set_threads(config["threads"])
    from asr.lm.train import train

    train(config)


def evaluate_lm(config: dict[str, Any]) -> None:
    """Print a language model's perplexity."""
    _set_threads(config["threads"])
    from asr.lm.train import evaluate

    evaluate(config)


def benchmark(config: dict[str, Any], names: list[str] | None = None) -> None:
    """Measure speed."""
    from asr.benchmarks import run

    run(" ".join(names or ()), config)


def list_plugins() -> None:
    """Print every component with its provider and class, and what is wrong with any."""
    from rich.table import Table

    console = _console()
    table = Table("group", "name", "from", "class", "", box=None, pad_edge=False)
    for c in plugins.components((*plugins.COMPONENT_GROUPS, "experiment")):
        table.add_row(c.group, c.name, c.provider, c.target, c.problem)
    console.print(table)
    for problem in plugins.problems():
        console.print(f"problem: {problem}", markup=False, soft_wrap=True)


def _console() -> Console:
    from rich.console import Console

    return Console(markup=False, emoji=False)  # names of files and plugins are printed as they are


def _set_threads(threads: int | None) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)
