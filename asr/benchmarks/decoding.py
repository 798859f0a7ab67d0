"""Decoding speed: our beam search beside other decoders, on the same posteriors, and how good what they find is.

The posteriors are made, as of a recognizer that is sure or not, or a checkpoint's own for the utterances of a manifest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asr.benchmarks.fresh import decode_afresh
from asr.benchmarks.peers import DECODERS, FRAME_SECONDS, RIVALS, Decode, Posteriors, Task, build
from asr.benchmarks.posteriors import choose, log_softmax, make_logits, read_sentences, tokenizer
from asr.benchmarks.report import Measurement, machine
from asr.decoders import Beam
from asr.errors import ConfigError
from asr.evaluation.counts import count_words
from asr.evaluation.tuning import load_speech
from asr.lm import KneserNey, Ngram
from asr.lm.arpa import write_arpa
from asr.recognizer import load
from asr.types import Emissions

FRAMES = 500
SCALES = {"sure": 1.0, "unsure": 0.5, "flat": 0.34}
"""Of the logits: the mean posterior of the likeliest label becomes .97, .62 and .34."""
THREADS = 0.67
"""The most that two threads may take of one's time: 1.5 times the throughput."""
WORSE = 1.0
"""The most of the utterances, in %, whose hypothesis may be worth less than a rival's."""
WITH_MODEL = ("beam_lexicon", "beam_open", "flashlight", "ctc_beam_decoder")


def decoding(config: Mapping[str, Any], folder: Path) -> tuple[list[Measurement], dict[str, Any]]:
    """Decode posteriors of sentences by each decoder in turn, one utterance at a time in one thread.

    Args:
        config: the composed `benchmark.yaml`.
        folder: for the language model and compiled code.

    Returns:
        what was measured, medians over the rounds; and the setting.
    """
    torch.set_num_threads(1)
    sentences, source = ([], "") if config["checkpoint"] and config["lm_path"] else read_sentences(config["sentences"])
    if config["checkpoint"]:
        labels, chosen, levels = _speech(config, folder)
    else:
        labels, chosen = tokenizer(), choose(sentences, config["utterances"], config["seed"])
        logits = make_logits(chosen, FRAMES, config["seed"])
        levels = {level: log_softmax(np.float32(scale) * logits) for level, scale in SCALES.items()}
    model, arpa = _model(config["lm_path"], sentences, chosen, folder)
    task = Task(labels, model, arpa)
    decoders, missing = build(task)
    utterances = {level: [Posteriors(row) for row in log_probs] for level, log_probs in levels.items()}

    texts: dict[str, dict[str, list[str]]] = {}  # the first time compiles, and warms up
    for level, of_level in utterances.items():
        for utterance in of_level:
            utterance.prepare()
        texts[level] = {name: [decode(u) for u in of_level] for name, decode in decoders.items()}
    times: dict[str, dict[str, list[float]]] = {level: {name: [] for name in decoders} for level in levels}
    for _ in range(config["rounds"]):
        for level, of_level in utterances.items():
            for name, decode in decoders.items():
                times[level][name].append(_time(decode, of_level))

    measured: list[Measurement] = []
    for level, log_probs in levels.items():
        measured += _of_level(level, task, log_probs, chosen, texts[level], times[level])
    if not config["checkpoint"]:
        measured.append(_threads(task, levels["unsure"], config["rounds"]))
        if config["fresh_utterances"]:
            measured += _fresh(model, levels["sure"], config["fresh_utterances"], folder)
    frames = statistics.mean(map(len, next(iter(levels.values()))))
    setting = machine(torch.device("cpu")) | {
        "p": "mean posterior of the likeliest label",
        "posteriors": f"{len(chosen)} × {frames:.0f} frames, {len(labels)} labels, of {config['checkpoint'] or source}",
        "language model": f"{model.order}-gram, {sum(model.counts):,} n-grams, {config['lm_path'] or f'of {source}'}",
        "objective": "mean of what is maximized, without a model the CTC score alone",
        "beam": task.beam,
        "rounds": config["rounds"],
    }
    return measured, setting | {f"not measured: {DECODERS[name][0]}": why for name, why in missing.items()}


def _speech(config: Mapping[str, Any], folder: Path) -> tuple[Any, list[str], dict[str, Any]]:
    """The checkpoint's tokenizer, references drawn from the manifest, and their (T, V) log-probabilities."""
    recognizer = load(config["checkpoint"], config["device"], None, config["batch_seconds"])
    labels = recognizer.pipeline.tokenizer
    if " " not in labels.labels:
        raise ConfigError(f"checkpoint={config['checkpoint']}: its labels are not characters, as other decoders need.")
    if not config["manifest"]:
        raise ConfigError("manifest: which utterances is the checkpoint to hear?")
    speech = load_speech(recognizer, config["manifest"], folder / "emissions")
    drawn = np.random.default_rng(config["seed"]).permutation(len(speech.references))[: config["utterances"]]
    return labels, [speech.references[k] for k in drawn], {"speech": [np.array(speech.emissions[k]) for k in drawn]}


def _model(path: str | None, sentences: list[str], chosen: list[str], folder: Path) -> tuple[Ngram, Path]:
    """The language model, and its ARPA file for those who read nothing else."""
    if path:
        model = Ngram.load(path)
    else:
        held_out = set(chosen)
        model = KneserNey(order=3).fit([s.split() for s in sentences if s not in held_out])
    if model.unit != "words":
        raise ConfigError(f"lm_path={path}: a model of {model.unit}; one of words is needed.")
    write_arpa(model, folder / "lm.arpa")
    return model, folder / "lm.arpa"


def _time(decode: Decode, utterances: list[Posteriors]) -> float:
    """Milliseconds per utterance."""
    started = time.perf_counter()
    for utterance in utterances:
        decode(utterance)
    return 1000 * (time.perf_counter() - started) / len(utterances)


def _of_level(
    level: str, task: Task, log_probs: Sequence[np.ndarray], references: list[str],
    texts: Mapping[str, list[str]], times: Mapping[str, list[float]],
) -> list[Measurement]:  # fmt: skip
    """The speed of each decoder, in the table with the rest in its note; ours beside their rivals."""
    likeliest = np.exp(np.concatenate([row.max(-1) for row in log_probs])).mean()
    peak = f"p {likeliest:.2f}".replace("0.", ".")
    measured: list[Measurement] = []
    objectives: dict[str, list[float]] = {}
    for name, found in texts.items():
        objectives[name] = list(map(task.objective, log_probs, found, [name in WITH_MODEL] * len(found)))
        rate, objective = 100 * count_words(references, found).rate, statistics.mean(objectives[name])
        note = f"{_range(times[name])}; WER {rate:.1f} %, objective {objective:.2f}"
        key, what = f"{level}_{name}", f"{peak} {DECODERS[name][0]}"
        measured += [
            Measurement(key, what, statistics.median(times[name]), "ms", note=note),
            Measurement(f"{key}_wer", f"{what}: word error rate", rate, "%", shown=False),
            Measurement(f"{key}_objective", f"{what}: mean objective", objective, "nat", shown=False),
        ]
    for ours, rival in RIVALS.items():
        if rival not in texts:
            continue
        ratios = [a / b for a, b in zip(times[ours], times[rival], strict=True)]
        worse = 100 * np.less(objectives[ours], objectives[rival]).mean()
        what = f"{peak}   {DECODERS[ours][0]} / {rival.replace('_', '-')}"
        measured += [
            _median(f"{level}_{ours}_ratio", what, ratios, target=1.0),
            Measurement(f"{level}_{ours}_worse", f"{peak}   of lower objective", worse, "%", WORSE),
        ]
    return measured


def _threads(task: Task, log_probs: np.ndarray, rounds: int) -> Measurement:
    """The time of a batch with two threads, over that with one: half of it if they do not wait for each other."""
    emissions = Emissions(log_probs, np.full(len(log_probs), FRAMES), FRAME_SECONDS)
    one, two = (Beam(task.tokenizer, lm=task.model, threads=threads, **task.scores) for threads in (1, 2))
    ratios = []
    for _ in range(rounds):
        began = time.perf_counter()
        one(emissions)
        middle = time.perf_counter()
        two(emissions)
        ratios.append((time.perf_counter() - middle) / (middle - began))
    return _median("threads", "ours, 2 threads / 1", ratios, target=THREADS)


def _fresh(model: Ngram, log_probs: np.ndarray, utterances: int, folder: Path) -> list[Measurement]:
    model.save(folder / "lm")
    np.save(folder / "posteriors.npy", log_probs)
    first, again = (decode_afresh(folder, count, folder / "compiled") for count in (1, utterances))
    return [
        Measurement("first_call", "ours, first call on a machine", first["first"], "s", note="compiles"),
        Measurement("first_call_cached", "ours, first call in a process", again["first"], "s"),
        Measurement("memory_growth", f"ours, memory over {utterances:,} utterances", again["growth"], "MiB more"),
    ]


def _median(name: str, what: str, ratios: list[float], target: float) -> Measurement:
    return Measurement(name, what, statistics.median(ratios), "", target, _range(ratios))


def _range(values: list[float]) -> str:
    least, most = (Measurement("", "", value, "").format() for value in (min(values), max(values)))
    return f"{least} – {most}"
