"""Long equals short: utterances joined with pauses into one recording, beside the same utterances on their own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from asr.benchmarks.report import Measurement, machine, peak_memory
from asr.data.audio import read_audio
from asr.data.index import ManifestIndex
from asr.errors import AsrError, ConfigError
from asr.evaluation.counts import ErrorCounts, count_words_each
from asr.recognizer import Recognizer, load
from asr.types import Transcript, Utterance, Word

PAUSES = (0.6, 1.5)
"""Seconds between two utterances, uniformly distributed, of noise as soft as the softest of the utterance before."""


CUTS = (0.0, 0.01, 0.02, 0.03)
"""Seconds that are cut off the start of each utterance: how much the recognizer changes by where a frame begins."""
SHIFT = 0.1
"""Seconds by which the start or end of a word may differ."""


@dataclass(frozen=True)
class Place:
    """An utterance in the long recording."""

    utterance: int
    start: float
    end: float


def long(config: Mapping[str, Any], folder: Path) -> tuple[list[Measurement], dict[str, Any]]:
    """Transcribe a long recording and its parts.

    Args:
        config: the composed `benchmark.yaml`.
        folder: for the recording.

    Returns:
        what was measured, and the setting.
    """
    import torch

    if not config["checkpoint"] or not config["manifest"]:
        raise ConfigError("long: which recognizer, on whose speech? checkpoint=RUN manifest=FILE.jsonl")
    torch.set_num_threads(config["threads"] or 1)
    recognizer = load(
        config["checkpoint"], config["device"], batch_seconds=config["batch_seconds"], vad=config["vad"],
        max_segment=config["max_segment"], min_pause=config["min_pause"], threads=config["threads"] or 1,
    )  # fmt: skip
    device = torch.device(recognizer.device)
    utterances = list(ManifestIndex(config["manifest"]))[: config["utterances"] or None]
    path = folder / "long.wav"
    places = write_joined(path, utterances, 60 * config["minutes"], recognizer.sample_rate, config["seed"])
    started = time.perf_counter()
    alone = [_transcribe(recognizer, utterances, cut) for cut in CUTS]
    between = time.perf_counter()
    [joined] = _transcribe(recognizer, [Utterance(str(path))])
    ended = time.perf_counter()

    texts = [recognizer.pipeline.text(utterances[place.utterance].text or "") for place in places]

    def count(found: Sequence[Sequence[Word]]) -> ErrorCounts:
        return sum(count_words_each(texts, [" ".join(word.text for word in words) for words in found]), ErrorCounts())

    # the words of each utterance in the recording, at their places there, as they are when it is alone
    separate = [
        [[word.later(place.start + cut) for word in found[place.utterance].words] for place in places]
        for cut, found in zip(CUTS, alone, strict=True)
    ]
    together = words_of(joined.words, places)
    long, rates = count(together), [100 * count(found).rate for found in separate]
    mean = sum(rates) / len(rates)
    shifts = time_shifts(together, separate[0])
    usual = [shift for found in separate[1:] for shift in time_shifts(found, separate[0])]
    seconds = sum(transcript.duration for found in alone for transcript in found)
    spread = f"{min(rates):.2f} to {max(rates):.2f}, begun {', '.join(f'{1000 * cut:g}' for cut in CUTS)} ms later"
    measured = [
        Measurement("alone", "each utterance by itself: WER", mean, "%", note=spread),
        Measurement("long", "one recording: WER", 100 * long.rate, "%", note=long.format("WER")),
        Measurement("difference", "  difference", 100 * long.rate - mean, "points", target=0.3),
        Measurement("moved", "  words moved by more than 100 ms", _beyond(shifts), "%"),
        Measurement("usual", "    by themselves, begun later", _beyond(usual), "%"),
        Measurement("compared", "    words of equal texts", len(shifts), ""),
        Measurement("segments", "  segments", len(joined.segments), ""),
        Measurement("alone_rtf", "each by itself: real-time factor", (between - started) / seconds, "s / s of audio"),
        Measurement(
            "long_rtf", "one recording: real-time factor", (ended - between) / joined.duration, "s / s of audio"
        ),
        Measurement("memory", "peak memory", peak_memory(device), "MiB", target=1536),
    ]
    setting = machine(device) | {
        "model": _size(recognizer.model),
        "recording": f"{joined.duration / 60:.1f} min, {len(places)} utterances of {config['manifest']}",
        "vad": f"{config['vad']}, max_segment {config['max_segment']:g} s, min_pause {config['min_pause']:g} s",
    }
    return measured, setting


def write_joined(path: Path, utterances: Sequence[Utterance], seconds: float, rate: int, seed: int) -> list[Place]:
    """Write utterances one after the other, and again from the first, until they take so many seconds.

    Returns:
        where each of them lies.
    """
    import soundfile

    random = np.random.default_rng(seed)
    places, written = [], 0
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as file:
        for number, utterance in cycle(enumerate(utterances)):
            samples = read_audio(utterance.audio_filepath, rate, utterance.offset, utterance.duration)
            frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
            softest = np.percentile(frames.std(axis=1), 5) if len(frames) else 0.0
            pause = softest * random.standard_normal(round(rate * random.uniform(*PAUSES)))
            file.write(np.concatenate([samples, pause]))
            places.append(Place(number, written / rate, (written + len(samples)) / rate))
            written += len(samples) + len(pause)
            if written >= seconds * rate:
                return places
    return places


def words_of(words: Sequence[Word], places: Sequence[Place]) -> list[list[Word]]:
    """The words that lie in each of the places, or nearest to it."""
    found: list[list[Word]] = [[] for _ in places]
    edges = [(before.end + after.start) / 2 for before, after in pairwise(places)]
    for word in words:
        found[int(np.searchsorted(edges, (word.start + word.end) / 2))].append(word)
    return found


def time_shifts(joined: Sequence[Sequence[Word]], alone: Sequence[Sequence[Word]]) -> list[float]:
    """By how many seconds the starts or ends of words differ, whichever more, where an utterance's texts are equal."""
    return [
        round(max(abs(word.start - other.start), abs(word.end - other.end)), 3)
        for words, others in zip(joined, alone, strict=True)
        if [word.text for word in words] == [word.text for word in others]
        for word, other in zip(words, others, strict=True)
    ]


def _beyond(shifts: Sequence[float]) -> float:
    """The percentage that is above `SHIFT`."""
    return 100 * sum(shift > SHIFT for shift in shifts) / max(1, len(shifts))


def _size(model: Any) -> str:
    if hasattr(model, "content"):
        return f"exported, {len(model.content) / 1e6:.1f} MB"
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters"


def _transcribe(recognizer: Recognizer, utterances: Sequence[Utterance], cut: float = 0.0) -> list[Transcript]:
    found: dict[int, Transcript] = {}
    later = (replace(u, offset=u.offset + cut, duration=u.duration and u.duration - cut) for u in utterances)
    for index, result in recognizer.transcribe_each(later):
        if isinstance(result, AsrError):
            raise result
        found[index] = result
    return [found[index] for index in range(len(utterances))]
