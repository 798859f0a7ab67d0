"""Steps without finite numbers are left out, by all ranks together; a GPU that is too small is explained."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import pytest
import torch

from asr.errors import TrainingError
from asr.training import bad_steps as bad_steps_module
from asr.training.module import SpeechRecognition

from .conftest import SMALL
from .test_run import SCRIPTS, difference

SPOILT = 7
SHORT = ("epochs=2", "data.batch_seconds=8", "augment=[]", "callbacks.last.every_n_train_steps=2")
FAULTY = (*SHORT, "objective._target_=tests.training.faults.SpoiltCtc", f"+objective.spoilt=[{SPOILT}]")


def bad_steps(run):
    return [torch.load(path, weights_only=True) for path in sorted((run / "bad_steps").iterdir())]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("by", ["loss", "gradient", "features"])
def test_a_bad_step_changes_nothing(train, monkeypatch, capsys, by, precision):
    """Neither weights nor optimizer nor running statistics; all other steps do."""
    states, bad = [], []

    def remember(self, *_):
        optimizer = [value.clone() for state in self.optimizers().state.values() for value in state.values()]
        states.append([value.clone() for value in self.state_dict().values()] + optimizer)

    def start(self, batch, batch_idx):
        remember(self)
        bad.append(SPOILT in batch.indices.tolist())
        original(self, batch, batch_idx)

    original = SpeechRecognition.on_train_batch_start
    monkeypatch.setattr(SpeechRecognition, "on_train_batch_start", start)
    monkeypatch.setattr(SpeechRecognition, "on_train_batch_end", remember)
    options = ("encoder=conv_blstm", "encoder.layers=1", "encoder.width=24", "encoder.channels=[4,4]")
    options += (f"+objective.by={by}", f"trainer.precision={precision}")
    run = train("run", *(option for option in FAULTY), *options)
    assert sum(bad) == 2
    for before, after, is_bad in zip(states[::2], states[1::2], bad, strict=True):
        same = len(before) == len(after) and all(map(torch.equal, before, after))
        assert same == is_bad
        assert all(value.isfinite().all() for value in after)
    kept = bad_steps(run)
    assert len(kept) == 2
    for step in kept:
        [batch] = step["batches"]
        places = batch["indices"].tolist()
        wrong = [index for index, is_wrong in zip(places, batch["bad"].tolist(), strict=True) if is_wrong]
        assert wrong == ([SPOILT] if by == "loss" else places)
        assert batch["ids"][places.index(SPOILT)] == "07" and batch["waveforms"].shape[0] == len(places)
    assert "left out" in capsys.readouterr().out


def test_all_ranks_leave_it_out(tones, tmp_path, train):
    """The rank that has it, and the other one; so do all the batches that are accumulated with it."""
    one = train("one", *FAULTY, "encoder.dropout=0", "trainer.accumulate_grad_batches=2")
    two = tmp_path / "two"
    options = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "encoder.dropout=0"]
    arguments = [*SMALL[1:], *options, *FAULTY, f"data.train={tones}", f"out={two}"]
    command = [sys.executable, SCRIPTS / "train.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent)}  # for the faulty objective
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert difference(one, two) < 1e-5
    assert done.stdout.count("left out: its loss is not finite; utterance 07 (") == 2
    first, second = bad_steps(one), bad_steps(two)
    assert [step["step"] for step in first] == [step["step"] for step in second]
    assert [torch.equal(a["batches"][0]["losses"].isnan(), b["batches"][0]["losses"].isnan())
            for a, b in zip(first, second, strict=True)] == [True, True]  # fmt: skip


def test_it_ends_after_many_in_a_row(train, tmp_path):
    faulty = (*SHORT, FAULTY[-2], "most_bad_steps=3")
    with pytest.raises(TrainingError, match=r"^3 steps in a row .* of utterances .*bad_steps.*lower optimizer\.lr"):
        train("run", *faulty)
    assert len(bad_steps(tmp_path / "run")) == 3


@pytest.mark.parametrize("most", [50, 3])
def test_not_in_a_row(train, monkeypatch, most):
    """Every other step is bad: it goes on to the end, and what is kept of them is bounded."""
    monkeypatch.setattr(bad_steps_module, "KEPT", most)
    run = train("run", *FAULTY, f"objective.spoilt={[*range(0, 40, 7)]}", "data.batch_seconds=3", "most_bad_steps=20")
    assert len(bad_steps(run)) > 5 if most == 50 else len(bad_steps(run)) == 3
    assert (run / "bundle").is_dir()


def test_validation_without_numbers_does_not_end_it(train, monkeypatch):
    def broken(self, batch, batch_idx):
        spoil = self.model.register_forward_hook(lambda *call: (torch.full_like(call[-1][0], torch.nan), call[-1][1]))
        original(self, batch, batch_idx)
        spoil.remove()

    original = SpeechRecognition.validation_step
    monkeypatch.setattr(SpeechRecognition, "validation_step", broken)
    run = train("run", *SHORT)
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert {row["val_wer"] for row in rows if row.get("val_wer")} == {"1.0"} and (run / "bundle").is_dir()


@pytest.mark.parametrize(
    "step, message",
    [
        (
            "training_step",
            r"batch of \d+ utterances of .* s with padding\. Lower data\.batch_seconds=8 .*max_seconds=30",
        ),
        ("validation_step", r"batch of \d+ utterances of .* s with padding\. Lower data\.validation_batch_seconds=120"),
    ],
)
def test_the_gpu_is_too_small(train, monkeypatch, step, message):
    original = getattr(SpeechRecognition, step)

    def too_large(self, batch, batch_idx):
        original(self, batch, batch_idx)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(SpeechRecognition, step, too_large)
    with pytest.raises(TrainingError, match=message):
        train("run", *SHORT)
