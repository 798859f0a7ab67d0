"""After the last step: the bundle, its scores, its card, and what to do next."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from asr.bundle import load_config, model_weights, own_paths, pipeline_config, read_checkpoint, save_bundle
from asr.configs import flatten
from asr.data.index import ManifestIndex
from asr.data.module import SpeechData
from asr.errors import AsrError
from asr.evaluation.decode import evaluate_manifest
from asr.evaluation.files import write_results
from asr.evaluation.report import Evaluation, print_evaluation, summarize
from asr.pipeline import Pipeline
from asr.recognizer import load
from asr.training.card import card


def finish(
    config: Mapping[str, Any],
    run: Path,
    trainer: L.Trainer,
    pipeline: Pipeline,
    decoder: Mapping[str, Any],
    data: SpeechData,
    seconds: float,
    console: Console,
) -> None:
    """Save the bundle (the best weights, or the last where nothing was validated), score it, say what comes next.

    Its decoder is the one given by its config.
    """
    source = run / "checkpoints" / "last.ckpt"
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor == config["monitor"] and callback.best_model_path:
            source = Path(callback.best_model_path)
    checkpoint = read_checkpoint(source)
    pipeline.model.load_state_dict(model_weights(checkpoint))
    bundle = run / "bundle"
    _keep_tuned(bundle, decoder, console)
    recognizer = {**pipeline_config(config), "decoder": decoder}
    save_bundle(bundle, pipeline, recognizer, "")
    scores = {}
    scored = {"validation": str(run / "validation.jsonl")} if data.validation is not None else {}
    scored |= data.tests
    for name, manifest in scored.items():
        evaluation = score(bundle, manifest, run / "evaluation" / name, config)
        console.print(f"\n{name}  {manifest}", markup=False, soft_wrap=True)
        print_evaluation(evaluation, console)
        scores[name] = evaluation
    averaged = ", a moving average" if "current_model_state" in checkpoint else ""
    weights = f"of step {checkpoint['global_step']:,}{averaged}"
    save_bundle(bundle, pipeline, recognizer, card(config, data, scores, weights, seconds))
    console.print(f"\nrecognizer  {bundle}  (training took {seconds / 60:.1f} min)", markup=False, soft_wrap=True)
    _show_next(bundle, list(scored.values())[-1] if scored else None, config["transcribe_example"], console)


def _keep_tuned(bundle: Path, decoder: Mapping[str, Any], console: Console) -> None:
    """Move away a bundle of this run into which another decoder was installed since."""

    def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
        options = flatten(config)
        return {key: value for key, value in options.items() if key.endswith("_target_") or not isinstance(value, str)}

    try:
        if without_paths(load_config(bundle)["decoder"]) == without_paths(decoder):
            return
    except AsrError:  # there is none, or none that could be used
        return
    kept = next(path for k in itertools.count(1) if not (path := bundle.with_name(f"bundle-{k}")).exists())
    bundle.rename(kept)
    console.print(f"kept        {kept}: another decoder was installed into it", markup=False, soft_wrap=True)


def score(bundle: Path, manifest: str | Path, out: Path, config: Mapping[str, Any]) -> Evaluation:
    """Evaluate a bundle on a manifest, and write the results to `out`."""
    results, seconds = evaluate_manifest(load(bundle, channel=config["data"]["channel"]), manifest)
    evaluation = summarize(results, seconds=seconds)
    about: dict[str, Any] = {"manifest": str(Path(manifest).resolve()), "command": shlex.join(sys.argv)}
    about |= {"decoder": own_paths(load_config(bundle)["decoder"], bundle), "channel": config["data"]["channel"]}
    summary = evaluation.as_dict() | about
    write_results(out, results, summary, overwrite=True)
    return evaluation


def _show_next(bundle: Path, manifest: str | None, transcribe: bool, console: Console) -> None:
    command = "python scripts/{}.py" if sys.argv[0].endswith(".py") else "asr {}"
    lines = []
    if manifest is not None:
        utterance = ManifestIndex(manifest)[0]
        if transcribe:
            recognizer = load(bundle)
            console.print(f"\nfile        {utterance.audio_filepath}", soft_wrap=True, markup=False)
            console.print(f"reference   {recognizer.pipeline.text(utterance.text or '')}", markup=False)
            for _, transcript in recognizer.transcribe_each([utterance]):
                console.print(f"transcript  {getattr(transcript, 'text', transcript)}", markup=False)
        checkpoint, audio = shlex.quote(f"checkpoint={bundle}"), shlex.quote(utterance.audio_filepath)
        lines = [
            f"{command.format('evaluate')} {checkpoint} {shlex.quote(f'manifest={manifest}')}",
            f"{command.format('transcribe')} {checkpoint} {audio}",
        ]
    lines.append(f"{command.format('train')} data.train=YOUR.jsonl name=mine   (README: Your own data)")
    console.print("\nnext:")
    for line in lines:
        console.print(f"  {line}", soft_wrap=True, markup=False, highlight=False)
