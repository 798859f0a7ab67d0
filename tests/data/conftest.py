from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.corpora.base import write_corpus
from asr.corpora.shards import write_shards
from asr.types import Utterance


@pytest.fixture
def noise():
    """Write uniform noise, a function of the seed, to an audio file; return its samples (N, channels)."""

    def write(path: Path, seconds: float = 0.5, rate: int = 16000, channels: int = 1, seed: int = 0, **options):
        samples = np.random.default_rng(seed).uniform(-0.5, 0.5, (round(seconds * rate), channels)).astype(np.float32)
        soundfile.write(path, samples, rate, **options)
        return samples

    return write


@pytest.fixture
def manifest():
    """Write rows to a manifest; return its path."""

    def write(path: Path, *rows: dict) -> Path:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def corpus(tmp_path, noise, manifest):
    """Utterances of 0.2 to 1 s of three speakers, "a b" times their number: (manifest, list of samples)."""
    rows, waveforms = [], []
    for k in range(12):
        seconds = 0.2 + 0.07 * k
        waveforms.append(noise(tmp_path / f"{k}.wav", seconds, seed=k, subtype="FLOAT")[:, 0])
        row = {"audio_filepath": f"{k}.wav", "text": "ab" * (1 + k // 4), "duration": round(seconds, 3)}
        rows.append(row | {"speaker": f"s{k % 3}"})
    return manifest(tmp_path / "train.jsonl", *rows), waveforms


@pytest.fixture
def both(tmp_path, noise):
    """The same 60 utterances as files and in shards: two manifests."""
    utterances = []
    for k in range(60):
        noise(tmp_path / f"{k}.wav", 0.2 + 0.01 * (k * 7 % 60), seed=k)
        utterances.append(Utterance(str(tmp_path / f"{k}.wav"), "ab" * (1 + k % 3), id=str(k)))
    files = write_corpus({}, {"train": utterances}, tmp_path / "files")
    return files.manifests["train"], write_shards(files, tmp_path / "shards", size=0.1).manifests["train"]
