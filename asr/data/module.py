"""The data of a training: which utterances, what was dropped and why, and the loaders over them."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from asr.data.audio import UNREADABLE_AUDIO, audio_duration
from asr.data.dropped import OUTSIDE, TOO_SHORT, Dropped
from asr.data.index import ManifestIndex
from asr.data.loader import LeftOut, Manifests, SpeechDataset, SpeechLoader
from asr.data.manifest import open_rows, write_manifest
from asr.data.needs import all_frames_needed, frames_needed
from asr.data.remote import is_url
from asr.data.sampler import BucketSampler, batches_by_length
from asr.data.speakers import held_out
from asr.data.stream import ReadAhead, StreamSampler
from asr.errors import AudioError, ConfigError, DataError
from asr.machine import processors
from asr.types import Batch, Utterance

STREAM_BUFFER = 10_000
"""Utterances that are shuffled among each other where files come from a URL."""
CHUNK = 1 << 20
"""Utterances that are looked at together."""
MOST_TEXTS = 1_000_000
"""Transcripts that a tokenizer learns from, at the most."""


@dataclass
class Fit:
    """What training needs to know of the pipeline to choose utterances."""

    encode: Callable[[str], list[int]]
    """A transcript of the manifest → label ids; DataError where it has a character that has no label."""
    unknown: Callable[[str], list[str]]
    """The characters (or words) of a transcript that have no label."""
    frames: Callable[[np.ndarray], np.ndarray]
    """(U,) seconds → (U,) emission frames, at the fastest speed that augmentation may give."""
    sample_rate: int
    name: str = ""
    """Of what `encode` does: equal names, equal labels."""


class SpeechData(L.LightningDataModule):
    """Manifests → batches.

    Args:
        train: manifest or manifests to train on.
        weights: how often an epoch meets the utterances of each manifest of `train`: 0.5 draws half of them, other ones
            in each epoch; 2 meets every one twice, with other augmentation; `None`: every one once.
        validation: those to validate on; `None` holds out speakers of `train`.
        test: those scored at the end of training.
        validation_speakers: the share of speakers held out when there is no validation manifest; 0 trains on all.
        validation_fold: which share of the shuffled speakers that is, from 0.
        validation_seed: shuffles the speakers.
        batch_seconds: the longest padded duration of a micro-batch.
        validation_batch_seconds: the same in validation.
        buckets: how many utterance lengths the sampler tells apart.
        curriculum: the first epochs, so many, go from short utterances to long ones.
        buffer: read files as a stream: each rank its own shards, one after the other, shuffled among so many
            utterances; `None`: any utterance may come at any time, but at a URL the buffer is 10,000.
        min_seconds, max_seconds: training utterances outside are dropped and counted.
        unknown: "error", or "drop" utterances with a character that has no label.
        channel: of the audio files, from 0; `None` averages all channels.
        workers: processes that read audio; `None`: one less than the cores, 8 at the most.
        worker_timeout: seconds that a batch may take before its worker counts as hung; 0 for no limit.
        failures: of reading while training: "stop" ends the run at audio that cannot be read and at a worker that died
            or hung; "skip" leaves the utterance out (with a worker, at the second time) and notes it in the run's
            folder. Validation never leaves out any.
        seed: of the shuffling.
    """

    def __init__(
        self,
        train: str | Sequence[str] | None = None,
        weights: float | Sequence[float] | None = None,
        validation: str | Sequence[str] | None = None,
        test: str | Sequence[str] | None = None,
        validation_speakers: float = 0.1,
        validation_fold: int = 0,
        validation_seed: int = 0,
        batch_seconds: float = 30.0,
        validation_batch_seconds: float = 120.0,
        buckets: int = 20,
        curriculum: int = 0,
        buffer: int | None = None,
        min_seconds: float = 0.1,
        max_seconds: float = 30.0,
        unknown: str = "error",
        channel: int | None = None,
        workers: int | None = None,
        worker_timeout: float = 600.0,
        failures: str = "stop",
        seed: int = 0,
    ):
        super().__init__()
        if failures not in ("stop", "skip"):
            raise ConfigError(f"data.failures={failures}: must be 'stop' or 'skip'.")
        if worker_timeout < 0:
            raise ConfigError(f"data.worker_timeout={worker_timeout}: must be seconds, or 0 for no limit.")
        if unknown not in ("error", "drop"):
            raise ConfigError(f"data.unknown={unknown}: must be 'error' or 'drop'.")
        for name, seconds in (("batch_seconds", batch_seconds), ("validation_batch_seconds", validation_batch_seconds)):
            if not seconds > 0:
                raise ConfigError(f"data.{name}={seconds}: must be above 0.")
        for name, number in (("seed", seed), ("validation_seed", validation_seed), ("workers", workers or 0)):
            if number < 0:
                raise ConfigError(f"data.{name}={number}: must be 0 or more.")
        if not 0 <= validation_speakers < 1:
            raise ConfigError(f"data.validation_speakers={validation_speakers}: must be a share from 0 to below 1.")
        paths = _paths(train)
        if not paths:
            raise ConfigError("data.train: no training manifest. Give data.train=FILE.jsonl, or a corpus=….")
        if curriculum < 0:
            raise ConfigError(f"data.curriculum={curriculum}: must be a number of epochs, 0 or more.")
        self.weights = None if weights is None else _check_weights(weights, paths)
        self.batch_seconds, self.validation_batch_seconds = batch_seconds, validation_batch_seconds
        self.buckets, self.curriculum = buckets, curriculum
        self.buffer = STREAM_BUFFER if buffer is None and any(map(is_url, paths)) else buffer
        if self.buffer is not None and curriculum:
            raise ConfigError(
                "data.curriculum: takes utterances from everywhere. Leave it, or data.buffer and URLs, out."
            )
        if self.buffer is not None and self.buffer < 1:
            raise ConfigError(f"data.buffer={buffer}: must be a number of utterances, 1 or more.")
        self.min_seconds, self.max_seconds, self.unknown = min_seconds, max_seconds, unknown
        self.channel, self.seed = channel, seed
        self.workers = min(8, max(1, processors() - 1)) if workers is None else workers
        self.train = Manifests(paths)
        self.worker_timeout, self.failures = worker_timeout, failures
        self.left_out: Path | None = None
        """A file to note what is left out while training."""
        self.tests = named_manifests(_paths(test))
        """The test manifests by the name that their results go under."""
        self.train_indices = np.arange(len(self.train))
        self.validation: Manifests | None = None
        self.validation_indices = np.zeros(0, np.int64)
        if _paths(validation):
            self.validation = Manifests(_paths(validation))
            self.validation_indices = np.arange(len(self.validation))
        elif validation_speakers:
            self.validation = self.train
            held = held_out(self.train, validation_speakers, validation_fold, validation_seed)
            self.train_indices, self.validation_indices = np.flatnonzero(~held), np.flatnonzero(held)
        self.dropped = Dropped()
        self.validation_unknown = 0
        """Validation utterances with a character that has no label: scored like all, but without a loss."""
        self.fit: Fit | None = None
        self.micro_batches_per_step = 1
        self._made: BucketSampler | None = None

    def texts(self):
        """The transcripts to train on, one by one; of more than `MOST_TEXTS` every second, third, …"""
        chosen = self.train_indices[:: max(1, -(-len(self.train_indices) // MOST_TEXTS))]
        return map(self.train.text, chosen)

    def frames(self) -> Iterator[int]:
        """The emission frames of the utterances to train on, at the fastest speed, one by one; after `prepare`."""
        assert self.fit is not None
        parts = (self.train_seconds[k : k + CHUNK] for k in range(0, len(self.train_seconds), CHUNK))
        return chain.from_iterable(map(self.fit.frames, parts))

    def prepare(self, fit: Fit, micro_batches_per_step: int) -> None:
        """Choose the training utterances: drops, and counts by reason, those that CTC cannot learn from.

        Raises:
            DataError: an unknown character (unless `unknown` is "drop"), or nothing is left to train on.
        """
        self.fit, self.micro_batches_per_step, self._made = fit, micro_batches_per_step, None
        self.train_seconds = _with_durations(self.train, self.train_indices, self._drop_unreadable)
        read = np.isfinite(self.train_seconds)
        self.train_indices, self.train_seconds = self.train_indices[read], self.train_seconds[read]
        if self.validation is not None:
            self.validation_seconds = _with_durations(self.validation, self.validation_indices)
            self._check_validation()
        keep = np.ones(len(self.train_indices), bool)
        all_needed = all_frames_needed(self.train.parts, fit.encode, fit.name)
        for start in range(0, len(self.train_indices), CHUNK):
            indices, seconds = self.train_indices[start : start + CHUNK], self.train_seconds[start : start + CHUNK]
            frames, needed = fit.frames(seconds), all_needed[indices]
            outside = (seconds < self.min_seconds) | (seconds > self.max_seconds)
            self.dropped.add(self.train, OUTSIDE, indices[outside], seconds[outside])
            keep[start : start + CHUNK] = ~outside
            faults: dict[str, list[tuple[int, str]]] = {}
            for k in np.flatnonzero(~outside & ((needed == 0) | (needed > frames))).tolist():
                reason, detail = self._fault(int(indices[k]), int(frames[k]))
                if reason:
                    keep[start + k] = False
                    faults.setdefault(reason, []).append((k, detail))
            for reason, found in faults.items():
                places, details = zip(*found, strict=True)
                self.dropped.add(self.train, reason, indices[[*places]], seconds[[*places]], details)
        self.train_indices, self.train_seconds = self.train_indices[keep], self.train_seconds[keep]
        if not len(self.train_indices):
            raise DataError(f"No utterance is left to train on: {self.dropped.summary() or 'the manifest has none'}.")
        for path, weight, seconds in self.train_parts():
            if len(seconds) and not round(weight * len(seconds)):
                raise ConfigError(f"data.weights: {weight} of the {len(seconds)} utterances of {path} is none.")

    def train_parts(self) -> list[tuple[str | Path, float, np.ndarray]]:
        """Each manifest to train on, its weight, and the seconds of its utterances."""
        weights = np.ones(len(self.train.parts)) if self.weights is None else self.weights
        part = self.train.parts_of(self.train_indices)
        return [
            (manifest.path, float(weights[k]), self.train_seconds[part == k])
            for k, manifest in enumerate(self.train.parts)
        ]

    def _drop_unreadable(self, index: int, error: AudioError) -> None:
        if self.failures != "skip":
            raise AudioError(f"{self.train.where(index)}: {error}; data.failures=skip leaves such utterances out")
        self.dropped.add(self.train, UNREADABLE_AUDIO, [index], [0.0], [str(error)])

    def _check_validation(self) -> None:
        """Leave out, counted, what has no transcript to score against; count what can have no loss."""
        assert self.validation is not None and self.fit is not None
        keep = np.ones(len(self.validation_indices), bool)
        for k, index in enumerate(self.validation_indices):
            utterance = self.validation[int(index)]
            if not (utterance.text or "").strip():
                keep[k] = False
            elif self.fit.unknown(utterance.text or ""):
                self.validation_unknown += 1
        silent = (self.validation_indices[~keep], self.validation_seconds[~keep])
        self.dropped.add(self.validation, "without transcript, of the validation set", *silent)
        self.validation_indices, self.validation_seconds = self.validation_indices[keep], self.validation_seconds[keep]
        if not len(self.validation_indices):
            raise DataError("No utterance of the validation set has a transcript. Give another data.validation.")

    def _fault(self, index: int, frames: int) -> tuple[str, str]:
        """Why a training utterance cannot be learnt from, with details; two empty strings where it can."""
        assert self.fit is not None
        utterance = self.train[index]
        if not (utterance.text or "").strip():
            return "without transcript", ""
        unknown = self.fit.unknown(utterance.text or "")
        if unknown and self.unknown == "error":
            raise DataError(
                f"{self.train.where(index)}: no label for {', '.join(map(repr, unknown))}: {utterance.text!r}. "
                "Let the text normaliser remove it (text=…), add it to the tokenizer's labels, "
                "or leave such utterances out with data.unknown=drop."
            )
        if unknown:
            return "unknown characters", " ".join(unknown)
        if not (needed := frames_needed(utterance.text or "", self.fit.encode)):
            return "without transcript", "nothing is left of it after normalisation"
        if needed > frames:
            return TOO_SHORT, f"{frames} frames for {needed} needed by the transcript"
        return "", ""

    def train_dataloader(self) -> SpeechLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return self.loader(self.train, self._sampler(rank, world_size), persistent=True)

    def _sampler(self, rank: int = 0, world_size: int = 1) -> BucketSampler:
        if self._made is None:
            self._made = self._make_sampler()
        return self._made.for_rank(rank, world_size)

    def _make_sampler(self) -> BucketSampler:
        indices, seconds, shares = self.train_indices, self.train_seconds, None
        if self.weights is not None:
            weights = self.weights[self.train.parts_of(indices)]
            # an utterance of weight 2.5 stands there twice, and a third time with a share of 0.5
            copies = [np.flatnonzero(weights > copy) for copy in range(math.ceil(weights.max()))]
            shares = np.concatenate([np.minimum(weights[k] - copy, 1) for copy, k in enumerate(copies)])
            indices = np.concatenate([indices[k] + copy * len(self.train) for copy, k in enumerate(copies)])
            seconds = seconds[np.concatenate(copies)]
        options: dict[str, Any] = {
            "group": self.micro_batches_per_step,
            "buckets": self.buckets,
            "seed": self.seed,
            "indices": indices,
            "shares": shares,
        }
        if self.buffer is None:
            return BucketSampler(seconds, self.batch_seconds, curriculum=self.curriculum, **options)
        files = self.train.files[indices % len(self.train)]
        sampler = StreamSampler(seconds, self.batch_seconds, files=files, buffer=self.buffer, **options)
        sampler.ahead = ReadAhead(self.train)
        return sampler

    def val_dataloader(self) -> SpeechLoader | list:
        if self.validation is None:
            return []
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = batches_by_length(self.validation_indices, self.validation_seconds, self.validation_batch_seconds)
        assert self.fit is not None
        encode = functools.partial(_encode_known, self.fit.encode)
        batches += [[-1]] * (-len(batches) % world_size)  # every rank has as many; none drops or repeats an utterance
        ours = [[(k, 0) for k in batch] for batch in batches[rank::world_size]]
        return self.loader(self.validation, ours, persistent=False, encode=encode)

    def loader(self, manifests: Manifests, batches, persistent: bool, encode: Callable | None = None) -> SpeechLoader:
        assert self.fit is not None
        dataset = SpeechDataset(manifests, encode or self.fit.encode, self.fit.sample_rate, self.channel)
        return SpeechLoader(
            dataset,
            batches,
            self.worker_timeout,
            LeftOut(manifests, self.left_out) if self.failures == "skip" and encode is None else None,
            num_workers=self.workers,
            persistent_workers=persistent and self.workers > 0,
            prefetch_factor=4 if self.workers else None,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)

    def steps_per_epoch(self) -> int:
        return self._sampler().micro_batches // self.micro_batches_per_step

    def write_reports(self, out: Path) -> None:
        """Write the dropped utterances and the held-out ones, so that both can be looked at and scored again."""
        if self.dropped.parts:
            with open_rows(out / "dropped.jsonl") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.dropped.rows())
        if self.validation is not None:
            found = [self.validation[int(k)] for k in self.validation_indices]
            repeated = {name for name, count in Counter(u.id for u in found).items() if count > 1}
            # ids are unique within each manifest only
            unique = (replace(u, id=f"{k}:{u.id}") if u.id in repeated else u for k, u in enumerate(found))
            write_manifest(out / "validation.jsonl", unique)


def named_manifests(paths: Sequence[str]) -> dict[str, str]:
    """Manifests to be scored, by their stems; with their folders' names where stems are the same.

    Raises:
        DataError: one is missing, broken, or has an utterance without a transcript.
    """
    named: dict[str, str] = {}
    for path in paths:
        for utterance in ManifestIndex(path):
            if utterance.text is None:
                raise DataError(f"{path}: utterance '{utterance.id}' has no 'text' to score against.")
        name = Path(path).stem
        if name in named or name == "validation":
            name = f"{Path(path).absolute().parent.name}-{name}"
        if name in named:
            raise ConfigError(f"data.test: {path} is named twice, or its name is another's. Rename it.")
        named[name] = str(path)
    return named


def _paths(value: str | Sequence[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, (str, Path)) else [str(path) for path in value]


def _check_weights(weights: float | Sequence[float], paths: Sequence[str]) -> np.ndarray:
    weights = [weights] if isinstance(weights, (int, float)) else weights
    if len(weights) != len(paths):
        raise ConfigError(f"data.weights: {len(weights)} weights for {len(paths)} manifests: {', '.join(paths)}.")
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ConfigError(f"data.weights: {weight!r} must be a number above 0.")
    return np.array(weights, np.float64)


def _encode_known(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """The labels of a validation transcript, none if it has an unknown character: it is scored, but has no loss."""
    try:
        return encode(text)
    except DataError:
        return []


def _with_durations(
    manifests: Sequence[Utterance], indices: np.ndarray, failed: Callable[[int, AudioError], None] | None = None
) -> np.ndarray:
    """(U,) seconds; those that the manifest lacks are read from the audio's header, NaN where that has failed."""
    # the index keeps them as float32: rounded, 0.7 is 0.7 again
    seconds = manifests.seconds[indices].astype(np.float64).round(5)  # type: ignore[attr-defined]
    missing = np.flatnonzero(np.isnan(seconds))

    def look(k: int) -> float:
        utterance = manifests[int(indices[k])]
        try:
            return audio_duration(utterance.audio_filepath) - utterance.offset
        except AudioError as error:
            if failed is None:
                raise
            failed(int(indices[k]), error)
            return math.nan

    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(missing), 1000):  # a pool queues all that it is given
            part = missing[start : start + 1000]
            seconds[part] = list(pool.map(look, part))
    return seconds
