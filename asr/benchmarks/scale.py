"""A start of training on millions of utterances: the index made once, the time to the first batch, and the memory.

    python -m asr.benchmarks.scale CONFIG.json

starts a training as far as its first batch, and prints seconds and MiB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asr.benchmarks.report import Measurement, machine

SHARD = 4000
"""Utterances of a shard; 100,000 hours have 12,500 of them, of 500 MB."""
DISTINCT = 200
"""Utterances that are different: shards are links to one file."""


def scale(config: Mapping[str, Any], folder: Path) -> tuple[list[Measurement], dict[str, Any]]:
    """Write a manifest of so many utterances in shards; start on it as one rank of many, first time and later.

    Args:
        config: the composed `benchmark.yaml`; `trainer.accumulate_grad_batches` stands for the ranks.
        folder: for the manifest; needs 275 bytes an utterance.

    Returns:
        what was measured; and the setting.
    """
    count, ranks = config["utterances"], config["trainer"].get("accumulate_grad_batches", 1)
    manifest, hours = write_manifest(folder / "corpus", count, config["seed"])
    data = config["data"] | {"train": str(manifest), "validation": None, "validation_speakers": 0, "test": None}
    trainer = config["trainer"] | {"accelerator": "cpu"}
    config = {**config, "data": data, "trainer": trainer, "callbacks": {}, "logger": {}, "out": str(folder / "run")}

    def start(buffer: int | None) -> dict[str, float]:
        path = folder / "config.json"
        path.write_text(json.dumps(config | {"data": data | {"buffer": buffer}}), encoding="utf-8")
        command = [sys.executable, "-m", "asr.benchmarks.scale", str(path)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"started: {found}", file=sys.stderr, flush=True)  # it takes long
        return found

    first, whole, stream = start(None), start(None), start(10_000)
    measured = [
        Measurement("index", "index, once", first["index"], "s"),
        Measurement("index_rate", "  rate", count / first["index"], "utterances / s"),
        Measurement("counting", "frames needed, once for each tokenizer", first["prepare"] - whole["prepare"], "s"),
        Measurement("first_memory", "peak memory of a process, then", first["memory"], "MiB", 8192),
    ]
    for name, what, found in (("whole", "shuffling all", whole), ("stream", "shuffling 10,000 in a stream", stream)):
        measured += [
            Measurement(name, f"{what}: first batch after", found["total"], "s", 120),
            Measurement(f"{name}_sampler", "  of which the plan of the epoch", found["plan"], "s"),
            Measurement(f"{name}_memory", "  peak memory of a rank", found["memory"], "MiB", 8192),
            Measurement(f"{name}_resident", "  memory of a rank while training", found["resident"], "MiB"),
        ]
    setting = machine(torch.device("cpu")) | {
        "data": f"{count:,} utterances, {hours:,.0f} h, {-(-count // SHARD):,} shards",
        "manifest": f"{manifest.stat().st_size / 1e9:.2f} GB",
        "cores": os.cpu_count(),
        "ranks": ranks,
        "batches": f"{data['batch_seconds']:g} s",
    }
    return measured, setting


def write_manifest(folder: Path, count: int, seed: int = 0) -> tuple[Path, float]:
    """Write a manifest of utterances of 1 to 15 s in shards; returns it, and the hours of audio.

    Transcripts have 14 characters a second, and 100,000 different words.
    """
    import io

    import soundfile

    from asr.data.shards import Member, ShardWriter

    random = np.random.default_rng(seed)
    writer, members, durations = ShardWriter(folder / "train", 1 << 40), [], []
    for _ in range(DISTINCT):
        seconds = round(float(np.clip(random.gamma(4, 1.8), 1, 15)), 2)
        audio = io.BytesIO()
        samples = (3000 * np.sin(np.arange(round(16000 * seconds)) / random.uniform(5, 50))).astype(np.int16)
        soundfile.write(audio, samples, 16000, format="FLAC")
        members.append(writer.add(audio.getvalue(), ".flac", {}))
        durations.append(seconds)
    writer.close()
    for k in range(1, -(-count // SHARD)):
        (folder / "train" / f"{k:06d}.tar").symlink_to("000000.tar")
    letters = random.choice(list("abcdefghijklmnopqrstuvwxyz"), (100_000, 6))
    words = ["".join(word[: 2 + k % 5]) for k, word in enumerate(letters)]
    texts = [" ".join(words[(97 * k) % len(words) :][: round(seconds * 2.8)]) for k, seconds in enumerate(durations)]
    tails = [
        f'", "text": "{text}", "duration": {seconds}, "speaker": "s'
        for text, seconds in zip(texts, durations, strict=True)
    ]
    places = [str(Member("", *member[1:])) for member in members]
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for shard in range(-(-count // SHARD)):
            file.writelines(
                f'{{"audio_filepath": "train/{shard:06d}.tar{places[k % DISTINCT]}{tails[k % DISTINCT]}{shard}", '
                f'"id": "{k}"}}\n'
                for k in range(shard * SHARD, min((shard + 1) * SHARD, count))
            )
    return folder / "train.jsonl", sum(durations) / DISTINCT * count / 3600


def _main(config: dict[str, Any]) -> None:
    started = time.perf_counter()
    from asr.benchmarks.report import peak_memory
    from asr.data.index import ManifestIndex
    from asr.data.module import SpeechData
    from asr.training.run import set_up

    opened = time.perf_counter()
    ManifestIndex(config["data"]["train"])
    indexed = time.perf_counter()
    seconds = {"prepare": 0.0}
    prepare = SpeechData.prepare

    def timed(self: SpeechData, *arguments: Any) -> None:
        begun = time.perf_counter()
        prepare(self, *arguments)
        seconds["prepare"] = time.perf_counter() - begun

    SpeechData.prepare = timed  # type: ignore[method-assign, assignment]
    _, _, data = set_up(config)
    loader = data.train_dataloader()
    begun = time.perf_counter()
    next(iter(loader))
    ended = time.perf_counter()
    found = {
        "index": indexed - opened,
        "prepare": seconds["prepare"],
        "plan": ended - begun,
        "total": ended - started,
        "memory": peak_memory(torch.device("cpu")),
        "resident": _resident(),
    }
    print("\n" + json.dumps(found), flush=True)
    os._exit(0)  # not waiting for the workers


def _resident() -> float:
    """MiB that only this process holds; pages of mapped files are shared by all."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return float("nan")
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


if __name__ == "__main__":
    _main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
