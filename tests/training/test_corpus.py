"""Who prepares the corpus of a training, and who waits for it."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.console import Console

from asr.errors import DataError
from asr.training import corpus


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of torchrun on several nodes, whose processes share no name."""
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 16000), 16000)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.delenv("ASR_RUN_ID", raising=False)
    monkeypatch.setattr(corpus, "POLL", 0.01)
    return {
        "data": {"train": None, "validation": None, "test": None},
        "corpus": {"_target_": "asr.corpora.Folder", "root": str(tmp_path)},
        "manifests": str(tmp_path / "data" / "mine"),
    }


def prepare(config: dict[str, Any], rank: int) -> tuple[Any, str]:
    os.environ["RANK"] = str(rank)
    console = Console(width=200)
    with console.capture() as printed:
        manifests = corpus.prepare_manifests(config, console)["train"]
    return manifests, printed.get()


@pytest.mark.parametrize(
    ("split", "key"),
    [
        ("train", "train"), ("train-clean-100", "train"), ("train_si284", "train"), ("dev-clean", "validation"),
        ("dev93", "validation"), ("val", "validation"), ("valid", "validation"), ("Validation", "validation"),
        ("test", "test"), ("test_other", "test"), ("validated", None), ("other", None), ("invalidated", None),
    ],
)  # fmt: skip
def test_what_splits_are_for(split, key):
    assert [name for name, names in corpus.SPLITS.items() if names.fullmatch(split)] == ([key] if key else [])


def test_the_failure_of_another_launch_stops_nobody(config, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(DataError, match="no utterance can be kept"):
        prepare(config, 0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(corpus._wait_for, tmp_path / "data" / "mine")
        time.sleep(0.1)  # ten looks, before rank 0 has started
        (tmp_path / "a.txt").write_text("hello")
        prepare(config, 0)
        assert waiting.result(timeout=10).manifests


def test_one_rank_prepares(config, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(DataError, match="no utterance can be kept"):
        prepare(config, 0)
    with pytest.raises(DataError, match="could not be prepared; rank 0 says why"):
        prepare(config, 1)
    (tmp_path / "a.txt").write_text("hello")
    manifests, printed = prepare(config, 0)
    assert manifests == [str(tmp_path / "data" / "mine" / "train.jsonl")] and "preparing" in printed
    assert prepare(config, 1)[0] == manifests
    again, printed = prepare(config, 0)
    assert again == manifests
    assert "mine, prepared " in printed and "delete the folder to prepare it anew" in printed
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine"], "no mark is left"
