"""Reading speed: an epoch of batches from shards, beside the same files one by one."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from asr.benchmarks.noise import write_noise
from asr.benchmarks.report import Measurement, machine
from asr.corpora.base import Report, Tally
from asr.corpora.shards import write_shards
from asr.data.loader import SpeechLoader
from asr.data.manifest import read_manifest, write_manifest
from asr.data.module import Fit, SpeechData

FIT = Fit(lambda text: [1], lambda text: [], lambda seconds: np.full(len(seconds), 1000), 16000)
"""Only the audio is of interest."""


def shards(config: Mapping[str, Any], folder: Path) -> tuple[list[Measurement], dict[str, Any]]:
    """Read an epoch by turns from files, from shards in the same order, and from shards as a stream.

    Args:
        config: the composed `benchmark.yaml`.
        folder: for the noise and the shards.

    Returns:
        what was measured, medians over the rounds; and the setting.
    """
    torch.set_num_threads(1)
    manifest = Path(config["manifest"] or _write_flac(folder / "noise", config["utterances"], config["seed"]))
    started = time.perf_counter()
    prepared = Report({}, {"train": manifest}, {"train": Tally(0, 0.0)}, {"train": {}})
    written = write_shards(prepared, folder / "shards", size=50)
    writing = time.perf_counter() - started
    loaders = {
        "files": _loader(config, manifest, None),
        "shards": _loader(config, written.manifests["train"], None),
        "stream": _loader(config, written.manifests["train"], 500),
    }
    seconds = sum(float(batch.lengths.sum()) for batch in loaders["files"]) / FIT.sample_rate
    files = [*(Path(u.audio_filepath) for u in read_manifest(manifest)), *(folder / "shards").rglob("*.tar")]
    measured = [Measurement("writing", "writing shards", seconds / writing, "h of audio / h")]
    for cold, where in ((True, "from the disk"), (False, "from memory")):
        times = _take_turns(loaders, config["rounds"], files if cold else ())
        name = "disk" if cold else "memory"
        measured.append(
            Measurement(name, f"files {where}", seconds / statistics.median(times["files"]), "h of audio / h")
        )
        for kind, what in (("shards", "shards / files"), ("stream", "shards as a stream / files")):
            ratio = statistics.median(a / b for a, b in zip(times[kind], times["files"], strict=True))
            measured.append(Measurement(f"{name}_{kind}", f"  {what}", ratio, "of the time", 1.0 if cold else None))
    count = len(loaders["files"].dataset.manifests)  # type: ignore[attr-defined]
    setting = machine(torch.device("cpu")) | {
        "data": f"{count} utterances, {seconds:.0f} s ({config['manifest'] or 'noise, FLAC'})",
        "rounds": config["rounds"],
        "workers": 0,
    }
    return measured, setting


def _take_turns(loaders: Mapping[str, SpeechLoader], rounds: int, dropped: Sequence[Path]) -> dict[str, list[float]]:
    """Seconds of epochs, after files went out of the system's memory."""
    times: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(rounds):
        for name, loader in loaders.items():
            for path in dropped:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            sampler: Any = loader.sampler
            sampler.set_epoch(sampler.epoch + 1)
            started = time.perf_counter()
            for _ in loader:
                pass
            times[name].append(time.perf_counter() - started)
    return times


def _loader(config: Mapping[str, Any], manifest: Path, buffer: int | None) -> SpeechLoader:
    data = SpeechData(
        str(manifest), validation_speakers=0, batch_seconds=config["data"]["batch_seconds"], workers=0, buffer=buffer
    )
    data.prepare(FIT, 1)
    return data.train_dataloader()


def _write_flac(folder: Path, utterances: int, seed: int) -> Path:
    """Noise as FLAC: shards then hold the very bytes of the files."""
    manifest = write_noise(folder, utterances, seed)
    rows = []
    for utterance in list(read_manifest(manifest)):
        path = Path(utterance.audio_filepath)
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(path.with_suffix(".flac"), samples, rate)
        rows.append(replace(utterance, audio_filepath=str(path.with_suffix(".flac"))))
    write_manifest(manifest, rows)
    return manifest
