"""Transcription speed: files to text, beside the acoustic model alone on the features of the same batches.

Then, if any are named, the engines side by side.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from asr.benchmarks.engines import RATIO, compare_engines
from asr.benchmarks.noise import write_noise
from asr.benchmarks.report import Measurement, machine, peak_memory, synchronize
from asr.data.index import ManifestIndex
from asr.errors import AsrError, ConfigError
from asr.pipeline import build
from asr.recognizer import Recognizer, load
from asr.types import Transcript, Utterance

Features = tuple[torch.Tensor, torch.Tensor]


def transcription(config: Mapping[str, Any], folder: Path) -> tuple[list[Measurement], dict[str, Any]]:
    """Transcribe files one at a time and together, reading included.

    Args:
        config: the composed `benchmark.yaml`.
        folder: for the noise.

    Returns:
        what was measured, medians over the rounds; and the setting.
    """
    torch.set_num_threads(config["threads"] or 1)
    utterances, source = _utterances(config, folder)
    recognizer = _recognizer(config, utterances, "auto")
    if not isinstance(recognizer.model, torch.nn.Module):
        raise ConfigError(f"checkpoint={config['checkpoint']}: is exported: name the bundle that it was made of.")
    others = {name: _recognizer(config, utterances, name) for name in _engines(config)}
    seconds = sum(t.duration for t in _transcribe(recognizer, utterances))  # warms up, too
    single = [_features(recognizer, [utterance]) for utterance in utterances]
    batches = _features(recognizer, utterances)
    times: dict[str, list[float]] = {"single": [], "single_model": [], "batch": [], "batch_model": []}
    for _ in range(config["rounds"]):
        started = time.perf_counter()
        for utterance in utterances:
            _transcribe(recognizer, [utterance])
        times["single"].append(time.perf_counter() - started)
        times["single_model"].append(_model_alone(recognizer, [f for features in single for f in features]))
        started = time.perf_counter()
        _transcribe(recognizer, utterances)
        times["batch"].append(time.perf_counter() - started)
        times["batch_model"].append(_model_alone(recognizer, batches))

    measured = []
    for name, what in (("single", "one file at a time"), ("batch", "all files together")):
        ours, model = (statistics.median(times[key]) / seconds for key in (name, f"{name}_model"))
        ratio = statistics.median(a / b for a, b in zip(times[name], times[f"{name}_model"], strict=True))
        measured += [
            Measurement(name, f"{what}: real-time factor", ours, "s / s of audio"),
            Measurement(f"{name}_model", "  acoustic model alone", model, "s / s of audio"),
            Measurement(f"{name}_ratio", "  ratio", ratio, "", RATIO if name == "batch" else None),
            Measurement(f"{name}_speed", "  speed", 1 / ours, "h of audio / h"),
        ]
    latency = 1000 * statistics.median(times["single"]) / len(utterances)
    measured.append(Measurement("latency", "one file, mean", latency, "ms"))
    measured.append(Measurement("memory", "peak memory", peak_memory(recognizer.device), "MiB"))
    if others:
        measured += compare_engines(others, utterances, config["rounds"], config["pocketsphinx"])
    setting = machine(recognizer.device) | {
        "model": f"{sum(p.numel() for p in recognizer.model.parameters()) / 1e6:.2f} M parameters, "
        + (str(config["checkpoint"]) if config["checkpoint"] else "random weights"),
        "files": f"{len(utterances)}, {seconds:.0f} s ({source})",
        "batches": f"{len(batches)} of {config['batch_seconds']:g} s at most",
        "rounds": config["rounds"],
    }
    return measured, setting


def _utterances(config: Mapping[str, Any], folder: Path) -> tuple[list[Utterance], str]:
    limit = config["utterances"]
    if config["audio"]:
        from asr.transcription import find_audio

        paths = [config["audio"]] if isinstance(config["audio"], str) else config["audio"]
        found = [Utterance(path) for path in find_audio(paths)][:limit]
        if not found:
            raise ConfigError(f"audio={config['audio']}: no audio files there.")
        return found, str(config["audio"])
    manifest = config["manifest"] or write_noise(folder / "noise", limit, config["seed"])
    index = ManifestIndex(manifest)
    return [index[k] for k in range(min(limit, len(index)))], str(config["manifest"] or "noise")


def _engines(config: Mapping[str, Any]) -> list[str]:
    return [config["engines"]] if isinstance(config["engines"], str) else config["engines"] or []


def _recognizer(config: Mapping[str, Any], utterances: list[Utterance], engine: str) -> Recognizer:
    options: dict[str, Any] = {"engine": engine, "threads": config["threads"] or 1}
    device = config["device"] if engine in ("auto", "torch", "bf16") else "cpu"
    if config["checkpoint"]:
        return load(config["checkpoint"], device, None, config["batch_seconds"], **options)
    texts = [text for u in utterances if (text := u.text)] or ["abcdefghijklmnopqrstuvwxyz '"]
    torch.manual_seed(config["seed"])
    return Recognizer(build(config, texts), device, config["batch_seconds"], **options)


def _transcribe(recognizer: Recognizer, utterances: list[Utterance]) -> list[Transcript]:
    found = []
    for _, result in recognizer.transcribe_each(utterances):
        if isinstance(result, AsrError):
            raise result
        found.append(result)
    return found


def _features(recognizer: Recognizer, utterances: list[Utterance]) -> list[Features]:
    """The features of each batch that the recognizer makes of them."""
    seen: list[Features] = []
    hook = recognizer.model.encoder.register_forward_pre_hook(lambda encoder, inputs: seen.append(inputs[:2]))
    _transcribe(recognizer, utterances)
    hook.remove()
    return seen


@torch.inference_mode()
def _model_alone(recognizer: Recognizer, batches: list[Features]) -> float:
    synchronize(recognizer.device)
    started = time.perf_counter()
    for features, lengths in batches:
        recognizer.model.encode(features, lengths)
    synchronize(recognizer.device)
    return time.perf_counter() - started
