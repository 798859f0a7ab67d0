"""Search a decoder's options on speech that is not scored later, from emissions that are computed once."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.progress import Progress
from rich.table import Table

from asr.configs import map_options, names_file
from asr.data.index import ManifestIndex
from asr.errors import AsrError, ConfigError, DataError
from asr.evaluation.counts import ErrorCounts, count_characters, count_words
from asr.plugins import instantiate
from asr.recognizer import Recognizer
from asr.types import Emissions
from asr.writers.files import whole_file

WEIGHTS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0]
SCORES = [-0.5, 0.0, 0.5, 1.0, 1.5, 2.0]
COUNTS = {"wer": count_words, "cer": count_characters}
BATCH = 64
EMISSIONS = re.compile(r"emissions-[0-9a-f]{16}\.(json|npy)|\.emissions\.\d+\.npy")
"""What a search leaves for the next one."""
"""Utterances decoded together."""


@dataclass(frozen=True)
class Trial:
    """One choice of options, and the errors made with it."""

    options: Mapping[str, Any]
    counts: ErrorCounts
    seconds: float
    """That decoding took."""


@dataclass(frozen=True)
class Speech:
    """Emissions of a manifest, with what was said."""

    emissions: Sequence[np.ndarray]
    """(T, V) float32 log-probabilities of each utterance."""
    references: Sequence[str]
    """Normalised."""
    frame_seconds: float
    ids: frozenset[str] = frozenset()
    """Of the utterances."""

    def batches(self) -> Iterator[tuple[Emissions, list[str]]]:
        """Batches of similar length with their references."""
        order = sorted(range(len(self.emissions)), key=lambda k: len(self.emissions[k]))
        for begin in range(0, len(order), BATCH):
            chosen = order[begin : begin + BATCH]
            lengths = np.array([len(self.emissions[k]) for k in chosen], np.int64)
            log_probs = np.zeros((len(chosen), max(lengths.max(), 1), self.emissions[0].shape[1]), np.float32)
            for row, k in enumerate(chosen):
                log_probs[row, : lengths[row]] = self.emissions[k]
            yield Emissions(log_probs, lengths, self.frame_seconds), [self.references[k] for k in chosen]


def search_space(decoder: Mapping[str, Any], given: Mapping[str, Sequence[Any] | None]) -> dict[str, list[Any]]:
    """The values to try for each option: those given, by default a weight and a score for each model, or a score."""
    default: dict[str, list[Any]] = {}
    for model, score in (("lm", "word_score"), ("label_lm", "label_score")):
        if decoder.get(model) is not None:
            default[f"{model}_weight"] = WEIGHTS
            default |= {score: SCORES} if score in decoder else {}
    if not default and "word_score" in decoder:
        default = {"word_score": SCORES}
    for key, values in given.items():
        if not isinstance(values, list | None):
            raise ConfigError(f"search.{key}={values}: must be a list, such as search.{key}=[{values}].")
    chosen = default | {key: list(values) for key, values in given.items() if values is not None}
    for key, values in chosen.items():
        if key not in decoder:
            raise ConfigError(f"search.{key}: the decoder has no option '{key}'.")
        if isinstance(decoder[key], Mapping):
            raise ConfigError(f"search.{key}: decoder.{key} has options of its own, which are not searched.")
        if not values:
            raise ConfigError(f"search.{key}: the list of values is empty.")
    if not chosen:
        raise ConfigError("search: which options? search.beam=[25,50,100]")
    return chosen


def load_speech(recognizer: Recognizer, manifest: str | Path, cache: Path) -> Speech:
    """The emissions of a manifest: from the cache, if it holds those of this model and speech, else computed into it.

    Raises:
        AudioError: a file cannot be read.
        DataError: an utterance has no transcript, or the manifest no utterance.
    """
    index = ManifestIndex(manifest)
    utterances = list(index)
    for utterance in utterances:
        if utterance.text is None:
            raise DataError(f"{manifest}: utterance '{utterance.id}' has no 'text' to score against.")
    if not utterances:
        raise DataError(f"{manifest}: holds no utterance.")
    references = [recognizer.pipeline.text(utterance.text or "") for utterance in utterances]
    key = hashlib.sha256(index.local.read_bytes())
    key.update(repr((index.local.resolve(), recognizer.channel, recognizer.sample_rate)).encode())
    for path in dict.fromkeys(utterance.audio_filepath for utterance in utterances):
        if os.path.isfile(path):  # not within a shard
            about = os.stat(path)
            key.update(repr((about.st_size, about.st_mtime_ns)).encode())
    for weights in recognizer.engine.weights():
        key.update(weights)
    # named by what they are: another search may use the folder at the same time
    header = cache / f"emissions-{key.hexdigest()[:16]}.json"
    content = header.with_suffix(".npy")
    if not (header.is_file() and content.is_file()):
        found: list[np.ndarray] = [np.zeros((0, 0), np.float32)] * len(utterances)
        with Progress(transient=True) as progress:
            task = progress.add_task("computing emissions", total=len(utterances))
            for batch in recognizer.read_batches(utterances):
                if isinstance(batch[0][2], AsrError):
                    raise batch[0][2]
                emissions = recognizer.emissions([samples for *_, samples in batch]).numpy()
                for row, (number, *_) in enumerate(batch):
                    found[number] = np.array(emissions.log_probs[row][: emissions.lengths[row]])
                progress.advance(task, len(batch))
        cache.mkdir(parents=True, exist_ok=True)
        for old in cache.iterdir():  # of no use any more, and large
            if EMISSIONS.fullmatch(old.name):
                old.unlink(missing_ok=True)
        partial = cache / f".emissions.{os.getpid()}.npy"
        np.save(partial, np.concatenate(found))
        partial.replace(content)
        with whole_file(header, "out") as file:
            json.dump([len(x) for x in found], file)
    lengths = json.loads(header.read_text())
    rows = np.split(np.load(content, mmap_mode="r"), np.cumsum(lengths)[:-1])
    ids = frozenset(utterance.id for utterance in utterances)
    return Speech(rows, references, recognizer.model.frame_seconds, ids)


def try_options(
    recognizer: Recognizer, speech: Speech, decoder: Mapping[str, Any], space: Mapping[str, list[Any]], metric: str
) -> list[Trial]:
    """Decode with every combination of the values; the trials, fewest errors first, else in their order."""
    combinations = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    trials = []
    with Progress(transient=True) as progress:
        task = progress.add_task("decoding", total=len(combinations) * len(speech.emissions))
        for options in combinations:
            built = instantiate({**decoder, **options}, "decoder", tokenizer=recognizer.pipeline.tokenizer)
            counts, began = ErrorCounts(), time.perf_counter()
            for emissions, references in speech.batches():
                found = [n_best[0].text for n_best in built(_where(emissions, built))]
                counts += COUNTS[metric](references, found)
                progress.advance(task, len(references))
            trials.append(Trial(options, counts, time.perf_counter() - began))
    return sorted(trials, key=lambda trial: trial.counts.errors)


def count_errors(recognizer: Recognizer, speech: Speech, metric: str) -> ErrorCounts:
    """The errors of the recognizer's own decoder."""
    decoder, counts = recognizer.pipeline.decoder, ErrorCounts()
    for emissions, references in speech.batches():
        found = [n_best[0].text for n_best in decoder(_where(emissions, decoder))]
        counts += COUNTS[metric](references, found)
    return counts


def _where(emissions: Emissions, decoder: Any) -> Emissions:
    """The emissions as the decoder takes them."""
    if not getattr(decoder, "device", False):
        return emissions
    import torch

    log_probs, lengths = np.asarray(emissions.log_probs), np.asarray(emissions.lengths)
    return Emissions(torch.from_numpy(log_probs), torch.from_numpy(lengths), emissions.frame_seconds)


def absolute_paths(decoder: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every path that exists made absolute, to be used from any folder."""

    def absolute(key: str, value: Any) -> Any:
        return str(Path(value).resolve()) if names_file(key, value) else value

    return map_options(decoder, absolute)


def write_config(decoder: Mapping[str, Any], path: Path, comment: str) -> None:
    """Write a decoder's config with a comment above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = yaml.safe_dump(dict(decoder), sort_keys=False, allow_unicode=True)
    path.write_text("".join(f"# {line}\n" for line in comment.splitlines()) + content, "utf-8")


def trials_table(trials: Sequence[Trial], metric: str, most: int = 10) -> Table:
    """The best trials."""
    table = Table(*trials[0].options, metric.upper(), "seconds", box=None, pad_edge=False)
    for trial in trials[:most]:
        counts = trial.counts.format("").strip()
        table.add_row(*(str(value) for value in trial.options.values()), counts, f"{trial.seconds:.1f}")
    return table
