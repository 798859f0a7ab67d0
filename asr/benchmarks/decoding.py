"""Decoding speed: our beam search beside other decoders, on the same posteriors, and how good what they find is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
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
from asr.lm import KneserNey, Ngram
from asr.lm.arpa import write_arpa
from asr.types import Emissions

FRAMES = 500
SCALES = {"sure": 1.0, "unsure": 0.5, "flat": 0.34}
"""Of the logits: the mean posterior of the likeliest label becomes .97, .62 and .34."""
THREADS = 0.67
"""The most that two threads may take of one's time: 1.5 times the throughput."""
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
    sentences, source = read_sentences(config["sentences"])
    chosen = choose(sentences, config["utterances"], config["seed"])
    model, arpa = _model(config["lm_path"], sentences, chosen, folder)
    task = Task(tokenizer(), model, arpa)
    decoders, missing = build(task)
    logits = make_logits(chosen, FRAMES, config["seed"])
    levels = {level: log_softmax(np.float32(scale) * logits) for level, scale in SCALES.items()}
    utterances = {level: [Posteriors(row) for row in log_probs] for level, log_probs in levels.items()}

    texts: dict[tuple[str, str], list[str]] = {}  # the first time compiles, and warms up
    for level, of_level in utterances.items():
        for utterance in of_level:
            utterance.prepare()
        for name, decode in decoders.items():
            texts[level, name] = [decode(utterance) for utterance in of_level]
    times: dict[tuple[str, str], list[float]] = {key: [] for key in texts}
    for _ in range(config["rounds"]):
        for level, of_level in utterances.items():
            for name, decode in decoders.items():
                times[level, name].append(_time(decode, of_level))

    measured: list[Measurement] = []
    for level, log_probs in levels.items():
        peak = f"p {np.exp(log_probs.max(-1)).mean():.2f}".replace("0.", ".")
        for name in decoders:
            measured += _of_decoder(level, peak, name, times[level, name], task, log_probs, texts[level, name], chosen)
        for ours, rival in RIVALS.items():
            if rival in decoders:
                ratios = [a / b for a, b in zip(times[level, ours], times[level, rival], strict=True)]
                what = f"{peak}   {DECODERS[ours][0]} / {rival.replace('_', '-')}"
                measured.append(_median(f"{level}_{ours}_ratio", what, ratios, target=1.0))
    measured.append(_threads(task, levels["unsure"], config["rounds"]))
    if config["fresh_utterances"]:
        measured += _fresh(model, levels["sure"], config["fresh_utterances"], folder)
    setting = machine(torch.device("cpu")) | {
        "p": "mean posterior of the likeliest label",
        "posteriors": f"{len(chosen)} × {FRAMES} frames, {len(task.tokenizer)} labels, of sentences of {source}",
        "language model": f"{model.order}-gram, {sum(model.counts):,} n-grams, {config['lm_path'] or 'of the others'}",
        "objective": "mean of what is maximized, without a model the CTC score alone",
        "beam": task.beam,
        "rounds": config["rounds"],
    }
    return measured, setting | {f"not measured: {DECODERS[name][0]}": why for name, why in missing.items()}


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


def _of_decoder(
    level: str, peak: str, name: str, times: list[float], task: Task, log_probs: np.ndarray, texts: list[str],
    references: list[str],
) -> list[Measurement]:  # fmt: skip
    """Its speed, in the table with the rest in its note; word error rate and objective."""
    rate = 100 * count_words(references, texts).rate
    objective = statistics.mean(map(task.objective, log_probs, texts, [name in WITH_MODEL] * len(texts)))
    note = f"{_range(times)}; WER {rate:.1f} %, objective {objective:.2f}"
    key, what = f"{level}_{name}", DECODERS[name][0]
    return [
        Measurement(key, f"{peak} {what}", statistics.median(times), "ms", note=note),
        Measurement(f"{key}_wer", f"{peak} {what}: word error rate", rate, "%", shown=False),
        Measurement(f"{key}_objective", f"{peak} {what}: mean objective", objective, "nat", shown=False),
    ]


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
