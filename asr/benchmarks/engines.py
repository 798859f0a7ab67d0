"""The engines side by side on the same files, the bare LSTM kernels, and pocketsphinx."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from asr.benchmarks.report import Measurement
from asr.data.audio import read_audio
from asr.errors import AsrError, ConfigError
from asr.evaluation.counts import ErrorCounts, count_words
from asr.recognizer import Recognizer
from asr.types import Utterance

RATIO, RTF = 1.3, 0.004
"""The most that it should be: from files to text over the acoustic model alone; and the real-time factor."""


def compare_engines(
    recognizers: Mapping[str, Recognizer], utterances: Sequence[Utterance], rounds: int, peer: int
) -> list[Measurement]:
    """Transcribe all files together by each engine in turn.

    Args:
        recognizers: by the name of their engine, on one model.
        utterances: the files; those with a text are scored.
        rounds: how often each takes its turn.
        peer: how many of the files pocketsphinx transcribes, too.

    Returns:
        medians over the rounds: from files to text; the engine alone on the same waveforms, features included; the
        ratio of both; word errors.
    """
    anyone = next(iter(recognizers.values()))
    batches = _batches(anyone, utterances)
    seconds = sum(len(samples) for batch in batches for samples in batch) / anyone.sample_rate
    texts = {name: _texts(recognizer, utterances) for name, recognizer in recognizers.items()}  # warms up, too
    kernels = _lstm_kernels(recognizers, batches)
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, recognizer in recognizers.items():
            times.setdefault(name, []).append(_timed(lambda r=recognizer: _texts(r, utterances)))  # type: ignore[misc]
            alone = _timed(lambda r=recognizer: [r.engine(waveforms) for waveforms in batches])  # type: ignore[misc]
            times.setdefault(f"{name} alone", []).append(alone)
        if kernels:
            times.setdefault("kernels", []).append(_timed(kernels))
    found = []
    for name in recognizers:
        whole, alone = (statistics.median(times[key]) / seconds for key in (name, f"{name} alone"))
        ratio = statistics.median(a / b for a, b in zip(times[name], times[f"{name} alone"], strict=True))
        errors = _errors(anyone, utterances, texts[name])
        found += [
            Measurement(f"engine_{name}", f"engine={name}: real-time factor", whole, "s / s of audio", RTF, errors),
            Measurement(f"engine_{name}_model", "  acoustic model alone", alone, "s / s of audio"),
            Measurement(f"engine_{name}_ratio", "  ratio", ratio, "", RATIO),
        ]
    if kernels:
        bare = statistics.median(times["kernels"]) / seconds
        found.append(Measurement("kernels", "bare LSTM kernels of torch, float32", bare, "s / s of audio"))
    return [*found, *_pocketsphinx(anyone, utterances[:peer])]


def _timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _texts(recognizer: Recognizer, utterances: Sequence[Utterance]) -> list[str]:
    texts = [""] * len(utterances)
    for index, result in recognizer.transcribe_each(utterances):
        if isinstance(result, AsrError):
            raise result
        texts[index] = result.text
    return texts


def _batches(recognizer: Recognizer, utterances: Sequence[Utterance]) -> list[Sequence[np.ndarray]]:
    """The waveforms of each batch that the recognizer makes of them."""
    engine: Any = recognizer.engine
    seen: list[Sequence[np.ndarray]] = []

    def remember(waveforms: Sequence[np.ndarray]) -> Any:
        seen.append(waveforms)
        return engine(waveforms)

    recognizer.engine = remember  # type: ignore[assignment]
    _texts(recognizer, utterances)
    recognizer.engine = engine
    return seen


def _errors(recognizer: Recognizer, utterances: Sequence[Utterance], texts: Sequence[str]) -> str:
    pairs = [(recognizer.pipeline.text(u.text), text) for u, text in zip(utterances, texts, strict=True) if u.text]
    return sum((count_words(*pair) for pair in pairs), ErrorCounts()).format("WER") if pairs else ""


def _lstm_kernels(
    recognizers: Mapping[str, Recognizer], batches: Sequence[Sequence[np.ndarray]]
) -> Callable[[], None] | None:
    """Runs the encoder's own LSTM layers, nothing else, over random frames in the shape of the batches."""
    model = next(iter(recognizers.values())).pipeline.model
    layers = [layer for layer in model.encoder.modules() if isinstance(layer, nn.LSTM)]
    if not layers:
        return None
    frames = [int(model.output_lengths(torch.tensor([max(map(len, batch))]))[0]) for batch in batches]
    shapes = [(len(batch), length) for batch, length in zip(batches, frames, strict=True)]
    inputs = [[torch.randn(*shape, layer.input_size) for layer in layers] for shape in shapes]

    @torch.inference_mode()
    def run() -> None:
        for batch in inputs:
            for layer, x in zip(layers, batch, strict=True):
                layer(x)

    run()
    return run


def _pocketsphinx(recognizer: Recognizer, utterances: Sequence[Utterance]) -> list[Measurement]:
    if not utterances:
        return []
    if importlib.util.find_spec("pocketsphinx") is None:
        raise ConfigError("pocketsphinx is not installed: pip install 'asr-pipeline[benchmark]', or pocketsphinx=0.")
    from pocketsphinx import Decoder

    decoder = Decoder(samprate=16000, loglevel="FATAL")
    texts, seconds = [], 0.0
    started = time.perf_counter()
    for u in utterances:
        samples = read_audio(u.audio_filepath, 16000, u.offset, u.duration)
        seconds += len(samples) / 16000
        decoder.start_utt()
        decoder.process_raw((32767 * samples).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        texts.append(recognizer.pipeline.text(decoder.hyp().hypstr) if decoder.hyp() else "")
    factor = (time.perf_counter() - started) / seconds
    note = _errors(recognizer, utterances, texts)
    what = f"pocketsphinx, en-us, on {len(utterances)} of the files: real-time factor"
    return [Measurement("pocketsphinx", what, factor, "s / s of audio", None, note)]
