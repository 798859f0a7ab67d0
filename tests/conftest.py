"""Real speech for tests, where it is there; and how many run at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

from asr.machine import processors

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before torch is loaded: the workers share the cores
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, processors() // workers)))

DATA = Path(os.environ.get("ASR_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker a core; slow tests start processes of their own, and wait for them: one after the other."""
    without_slow = all(f"not {kind}" in config.option.markexpr for kind in ("slow", "cluster"))
    return min(processors(), 16) if without_slow else 0


def _real_speech(name: str) -> Path:
    root = DATA / name
    if not root.is_dir():
        pytest.skip(f"needs the corpus in {root}; the environment variable ASR_TEST_DATA names another folder")
    return root


@pytest.fixture(scope="session")
def an4_root() -> Path:
    """The training part of CMU AN4 in its official layout."""
    return _real_speech("an4")


@pytest.fixture(scope="session")
def speechocean_root() -> Path:
    """The training part of speechocean762: a Kaldi data directory and its audio."""
    return _real_speech("speechocean762")


@pytest.fixture
def noise_manifest(tmp_path: Path) -> Path:
    """A manifest of four seconds of noise, by two speakers."""
    import soundfile

    rows = []
    for k, text in enumerate(("one two", "two", "three one", "two three")):
        noise = 0.1 * np.random.default_rng(k).standard_normal(16000)
        soundfile.write(tmp_path / f"{k}.flac", noise, 16000)
        rows.append({"audio_filepath": f"{k}.flac", "text": text, "duration": 1.0, "speaker": "ab"[k % 2]})
    manifest = tmp_path / "train.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return manifest


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A folder of its own, no run id of another test, and Hydra as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ASR_RUN_ID", raising=False)
    yield
    os.environ.pop("ASR_RUN_ID", None)
    GlobalHydra.instance().clear()
