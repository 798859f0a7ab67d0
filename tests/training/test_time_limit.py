"""`max_minutes`: what a slow machine leaves out, and where the schedule is then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asr.errors import CheckpointError, ConfigError
from asr.training import time_limit
from asr.training.module import SpeechRecognition
from asr.training.schedules import onecycle

from .conftest import SMALL, killed
from .test_interruption import OPTIONS, rows
from .test_run import SCRIPTS, difference

PEAK, LAST = 2e-3, 4e-6
SLOW = (*OPTIONS, f"optimizer.lr={PEAK}")


@pytest.fixture
def clock(monkeypatch):
    """A clock by which the k-th step takes so many seconds as `seconds` says of k."""

    class Clock:
        now = 1e6

        def seconds(self, step: int) -> float:
            return 10.0

    found = Clock()
    original = SpeechRecognition.training_step

    def training_step(self, batch, batch_idx):
        found.now += found.seconds(self.global_step) / self.trainer.accumulate_grad_batches
        return original(self, batch, batch_idx)

    monkeypatch.setattr(SpeechRecognition, "training_step", training_step)
    monkeypatch.setattr(time_limit, "monotonic", lambda: found.now)
    return found


def state(run: Path) -> dict:
    return torch.load(run / "checkpoints/last.ckpt")


def learning_rates(run: Path) -> list[float]:
    return [float(row["lr-AdamW/pg1"]) for row in rows(run) if row.get("lr-AdamW/pg1")]


def last_rate(run: Path) -> float:
    return state(run)["optimizer_states"][0]["param_groups"][0]["lr"]


def scheduled(places: list[int], steps: int = 27) -> list[float]:
    """The rates of a schedule at such places."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], PEAK)
    schedule = onecycle(optimizer, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [rates[place] for place in places]


@pytest.mark.parametrize("options", [(), ("max_steps=13",), ("trainer.accumulate_grad_batches=2",)])
def test_a_fast_machine_makes_all_steps(train, clock, capsys, options):
    whole, limited = train("whole", *OPTIONS, *options), train("limited", *OPTIONS, *options, "max_minutes=4.6")
    assert difference(whole, limited) == 0
    assert rows(whole) == rows(limited)
    assert "27 steps" not in capsys.readouterr().out
    assert difference(whole, train("limited", *OPTIONS, *options, "max_minutes=4.6", "resume=auto")) == 0


def test_a_slow_machine_ends_its_schedule_in_time(train, clock, capsys):
    """Of 27 steps of 10 s, 9 fit into a minute and a half; the schedule makes three of its steps in each of them."""
    run = train("run", *SLOW, "max_minutes=1.5")
    assert state(run)["global_step"] == 9
    assert learning_rates(run) == pytest.approx(scheduled([0, 3, 6, 9, 12, 15, 18, 21, 24]))
    assert last_rate(run) == pytest.approx(PEAK * LAST, rel=1e-3)
    assert "9 of 27 steps" in capsys.readouterr().out
    summary = json.loads((run / "evaluation/validation/summary.json").read_text())
    last = [row["val_wer"] for row in rows(run) if row["val_wer"]][-1]
    assert summary["wer"]["rate"] == pytest.approx(float(last))


def test_only_what_is_lost_is_left_out(train, clock):
    """A pause of 100 s in the fifth step of 27, of 10 s each, in 270 s: the schedule jumps, and goes on as before."""
    clock.seconds = lambda step: 110.0 if step == 4 else 10.0
    run = train("run", *SLOW, "max_minutes=4.5")
    assert learning_rates(run) == pytest.approx(scheduled([0, 1, 2, 3, 4, *range(15, 27)]))
    assert state(run)["global_step"] == 17


@pytest.mark.parametrize("step", [1, 6, 9, 11])
def test_it_is_resumed(train, clock, monkeypatch, step):
    """Wherever it is cut off: the time that passed before counts, as do the steps that were left out."""
    options = [*OPTIONS, "max_minutes=2", "callbacks.last.every_n_train_steps=1"]
    whole = train("whole", *options)
    with killed(monkeypatch, "on_train_batch_start", step=step):
        train("cut", *options)
    clock.now = 5.0  # after the machine was started again
    cut = train("cut", *options, "resume=auto")
    assert state(cut)["global_step"] == state(whole)["global_step"] == 12
    assert difference(whole, cut) == 0
    assert rows(cut) == rows(whole)
    clock.now += 1e4
    train("cut", *options, "resume=auto")  # there is nothing left to do
    assert state(cut)["global_step"] == 12
    assert rows(cut) == rows(whole)


def test_what_was_shortened_is_not_resumed_without_limit(train, clock):
    """The rest of its steps would have no learning rate."""
    train("run", *OPTIONS, "max_minutes=2")
    with pytest.raises(CheckpointError, match="max_minutes, which has shortened the schedule"):
        train("run", *OPTIONS, "resume=auto")
    train("constant", *OPTIONS, "max_minutes=2", "schedule=constant")
    assert state(train("constant", *OPTIONS, "schedule=constant", "resume=auto"))["global_step"] == 27
    fast = train("fast", *OPTIONS, "max_minutes=5")
    assert state(train("fast", *OPTIONS, "resume=auto"))["global_step"] == state(fast)["global_step"] == 27


def test_accumulated_batches_are_one_step(train, clock):
    run = train("run", *SLOW, "max_minutes=1", "trainer.accumulate_grad_batches=2", "data.batch_seconds=4")
    assert state(run)["global_step"] == 6
    assert last_rate(run) == pytest.approx(PEAK * LAST, rel=1e-3)


@pytest.mark.parametrize("schedule", ["plateau", "noam", "constant", "warmup_cosine"])
def test_with_every_schedule(train, clock, schedule):
    assert state(train("run", *OPTIONS, "max_minutes=1.5", f"schedule={schedule}"))["global_step"] == 9


def test_processes_end_together(tones, tmp_path):
    """By the real clock, of which each has its own."""
    options = [*SMALL[1:], "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "epochs=2000"]
    options += ["+callbacks.notes._target_=tests.training.faults.Notes", f"+callbacks.notes.path={tmp_path / 'notes'}"]
    options += ["max_minutes=0.1", f"optimizer.lr={PEAK}", f"data.train={tones}", f"out={tmp_path / 'run'}"]
    command = [sys.executable, SCRIPTS / "train.py", *options]
    subprocess.run(command, check=True, timeout=300, env=os.environ | {"PYTHONPATH": str(SCRIPTS.parent)})
    first, second = (len((tmp_path / f"notes-{rank}").read_text().splitlines()) for rank in (0, 1))
    assert first == second == state(tmp_path / "run")["global_step"] < 1000
    assert last_rate(tmp_path / "run") == pytest.approx(PEAK * LAST, rel=1e-3)


@pytest.mark.parametrize("minutes", [0, -1, "nan"])
def test_no_time_is_refused(train, minutes):
    with pytest.raises(ConfigError, match=r"max_minutes=.*above 0"):
        train("run", *OPTIONS, f"max_minutes={minutes}")
