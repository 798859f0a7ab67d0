"""Training from shards: one override away from files, and the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asr import cli
from asr.data import shards
from asr.data.audio import read_audio
from asr.data.index import ManifestIndex
from asr.errors import AudioError
from asr.training.run import train

from .conftest import SMALL, composed, killed

CORPUS = ("corpus=table", "corpus.columns.audio=audio_filepath", "corpus.columns.speaker=speaker")
SHORT = ("epochs=3", "data.batch_seconds=8", "callbacks.last.every_n_train_steps=2", "data.validation_speakers=0.25")


@pytest.fixture
def run(tones: Path, tmp_path: Path) -> Callable[..., Path]:
    """Trains on the tones as a corpus with files and shards of its own, and returns the run's folder."""
    corpus = [*CORPUS, f"corpus.path={tones}"]
    places = [f"shards={tmp_path / 'shards'}", "shard_size=1", f"out={tmp_path / 'files'}"]
    cli.run("prepare", [*corpus, *places])

    def trained(name: str, manifests: str, *options: str) -> Path:
        manifests = f"manifests={tmp_path / manifests}"
        train(composed(*SMALL, *corpus, *SHORT, manifests, f"out={tmp_path / name}", *options))
        return tmp_path / name

    return trained


def equal_weights(one: Path, two: Path) -> bool:
    first, second = (load_file(run / "bundle" / "model.safetensors") for run in (one, two))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_losses_equal_those_of_files(run, tmp_path):
    one, two = run("one", "files"), run("two", "shards")
    rows = [(path / "metrics.csv").read_text() for path in (one, two)]
    assert rows[0] == rows[1] and "val_loss" in rows[0]
    assert equal_weights(one, two)
    assert not list((tmp_path / "shards").rglob("*.flac"))


def test_a_stream_resumes_to_the_weights_of_the_uninterrupted_run(run, monkeypatch):
    stream = ("shards", "data.buffer=6", "data.workers=2", "trainer.accumulate_grad_batches=2")
    whole = run("whole", *stream)

    with killed(monkeypatch, "on_train_batch_end", step=3):
        run("cut", *stream)
    assert equal_weights(whole, run("cut", *stream, "resume=auto"))


def test_shards_need_no_corpus(run, tmp_path):
    train(composed(*SMALL, "epochs=1", "max_steps=1", f"manifests={tmp_path / 'shards'}", f"out={tmp_path / 'run'}"))
    assert (tmp_path / "run" / "bundle").is_dir()


def test_a_damaged_shard_is_fatal_or_passed_over(run, tmp_path):
    damaged = ManifestIndex(next((tmp_path / "shards").glob("*.jsonl")))[3]
    member = shards.parse_member(damaged.audio_filepath)
    with open(member.shard, "r+b") as shard:
        shard.seek(member.start + member.size // 2)
        shard.write(bytes(16))
    with pytest.raises(AudioError, match=r"the shard is damaged.*It stands in .*, line 4"):
        run("fatal", "shards", "data.validation_speakers=0")
    skipped = run("skipped", "shards", "data.validation_speakers=0", "data.failures=skip")
    [row] = map(json.loads, (skipped / "left_out-rank0.jsonl").open())
    assert row["id"] == damaged.id and "the shard is damaged" in row["reason"]


def test_a_shard_that_the_cache_of_open_ones_drops_is_read(run, tmp_path, monkeypatch):
    """As when two threads open it at once."""
    monkeypatch.setattr(shards, "_open", shards._open.__wrapped__)
    utterance = ManifestIndex(next((tmp_path / "shards").glob("*.jsonl")))[0]
    assert len(read_audio(utterance.audio_filepath, 16000)) == round(16000 * utterance.duration)
