"""Which checkpoints there are, where they lie, and which one a run goes on from."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asr.bundle import read_checkpoint
from asr.errors import CheckpointError
from asr.training.folder import RunFolder

from .conftest import killed

SHORT = ("epochs=3", "data.batch_seconds=8")  # 9 steps each


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (["max_steps=12"], {9, 12}),
        (["max_steps=18"], {9, 18}),
        (["max_steps=6", "trainer.accumulate_grad_batches=2"], {5, 6}),
        (["trainer.check_val_every_n_epoch=2"], {18, 27}),
        (["trainer.check_val_every_n_epoch=2", "max_steps=4"], {4}),
        (["trainer.check_val_every_n_epoch=null", "+trainer.val_check_interval=10"], {10, 20, 27}),
    ],
)
def test_the_last_step_is_validated(train, options, steps):
    run = train("run", *SHORT, *options, "callbacks.best.save_top_k=-1")
    found = {read_checkpoint(path)["global_step"] for path in (run / "checkpoints").glob("best-*.ckpt")}
    assert found == steps
    assert torch.load(run / "checkpoints" / "last.ckpt")["global_step"] == max(steps)


@pytest.mark.parametrize("callbacks", ["[]", "[ema]"])
def test_without_checkpoints_there_is_the_last_one(train, callbacks):
    run = train("run", "epochs=2", f"callbacks={callbacks}")
    assert [path.name for path in run.glob("**/*.ckpt")] == ["last.ckpt"]
    assert (run / "bundle" / "model.safetensors").is_file()


def test_checkpoints_may_lie_anywhere(train, tmp_path):
    train("run", "epochs=1", f"callbacks.best.dirpath={tmp_path / 'far' / 'away'}")
    assert len(list((tmp_path / "far" / "away").glob("best-*.ckpt"))) == 1


@pytest.fixture
def cut(train, monkeypatch, tmp_path) -> Callable[..., Path]:
    """A run that ended after 13 steps: its best checkpoint is of step 9; the last one, of step 12, seems older."""

    def run(*options: str) -> Path:
        with killed(monkeypatch, "on_train_batch_start", step=13):
            train("cut", *SHORT, *options)
        os.utime(tmp_path / "cut" / "checkpoints" / "last.ckpt", (0, 0))
        return tmp_path / "cut"

    return run


@pytest.mark.parametrize("weights_only", ["true", "false"])
def test_a_run_goes_on_from_its_last_step(train, cut, weights_only, capsys):
    options = ["callbacks.last.every_n_train_steps=4", f"+callbacks.best.save_weights_only={weights_only}"]
    cut(*options)
    run = train("cut", *SHORT, *options, "resume=auto")
    assert "cut/checkpoints/last.ckpt" in "".join(capsys.readouterr().out.split())
    assert torch.load(run / "checkpoints" / "last.ckpt")["global_step"] == 27


def test_weights_alone_are_not_resumed(train, cut):
    options = ["callbacks.last.every_n_train_steps=4", "+callbacks.best.save_weights_only=true"]
    [best] = (cut(*options) / "checkpoints").glob("best-*.ckpt")
    with pytest.raises(CheckpointError, match=r"holds the weights alone\. Start from them by init_from="):
        train("cut", *SHORT, *options, f"resume={best}")


def test_a_damaged_checkpoint_is_passed_over(train, cut, capsys):
    options = ["callbacks.last.every_n_train_steps=4"]
    (cut(*options) / "checkpoints" / "best-copied.ckpt").write_bytes(b"half of it")
    run = train("cut", *SHORT, *options, "resume=auto")
    assert "passed over: " in (said := capsys.readouterr().err) and "best-copied.ckpt: cannot be read" in said
    assert torch.load(run / "checkpoints" / "last.ckpt")["global_step"] == 27


def test_a_run_goes_on_from_where_it_went_back_to(train):
    """What lies there of the course that was given up has more steps, and is older."""
    run = train("run", *SHORT, "callbacks=[checkpoints,snapshots]", "callbacks.snapshots.every_n_epochs=1")
    first, *_, latest = sorted((run / "checkpoints").glob("snapshot-*.ckpt"))
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(first.read_bytes())
    assert RunFolder(run, "auto").checkpoint() == last
    os.utime(latest, (2e9, 2e9))
    assert RunFolder(run, "auto").checkpoint() == latest
