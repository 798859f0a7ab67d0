"""Whatever interrupts a training, it goes on as if nothing had been: the same steps, weights, and rows of figures."""

from __future__ import annotations

import contextlib
import csv
import errno
import os
import resource
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Timer

from asr.errors import CheckpointError, ConfigError
from asr.training import checkpoints
from asr.training import run as run_module
from asr.training.ema import Ema
from asr.training.module import SpeechRecognition

from .conftest import Killed, killed
from .test_run import difference

OPTIONS = (
    "epochs=3", "data.batch_seconds=8", "trainer.log_every_n_steps=1", "encoder.dropout=0.1",
    "callbacks=[checkpoints,ema,early_stopping,progress]", "callbacks.last.every_n_train_steps=2", "logger=[csv]",
    "~callbacks.progress",
)  # fmt: skip


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def whole(train) -> Path:
    return train("whole", *OPTIONS)


MOMENTS = {
    "on_train_batch_start": SpeechRecognition, "on_train_batch_end": SpeechRecognition,
    "on_validation_epoch_start": SpeechRecognition, "validation_step": SpeechRecognition,
    "on_validation_epoch_end": SpeechRecognition, "on_train_epoch_end": checkpoints.LastCheckpoint,
    "on_save_checkpoint": Ema,
}  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("nth", [2, 3])
def test_killed_at(train, whole, monkeypatch, moment, nth):
    """… the n-th such moment since it was begun or resumed, six times, or as often as it comes."""
    original, calls, deaths = getattr(MOMENTS[moment], moment), [], []

    def die(self, *arguments, **named):
        calls.append(moment)
        if len(calls) == nth and len(deaths) < 6:
            deaths.append(moment)
            raise Killed
        return original(self, *arguments, **named)

    monkeypatch.setattr(MOMENTS[moment], moment, die)
    cut = None
    while cut is None:
        calls.clear()
        with contextlib.suppress(Killed):
            cut = train("cut", *OPTIONS, "resume=auto")
    assert deaths
    assert difference(whole, cut) == 0
    assert rows(cut) == rows(whole)


@pytest.mark.parametrize("step", [1, 8, 9, 13, 18, 27])
@pytest.mark.parametrize(
    "options",
    [(), ("trainer.accumulate_grad_batches=2",), ("+trainer.val_check_interval=4",)],
    ids=["", "accumulating", "validating within the epoch"],
)
def test_a_signal_saves_and_stops(train, monkeypatch, step, options):
    """At the end of the step, wherever that is in the epoch, and nothing is done twice or left out."""
    whole = train("whole", *OPTIONS, *options)
    original = SpeechRecognition.training_step

    def signalled(self, batch, batch_idx):
        if self.trainer.fit_loop.epoch_loop.total_batch_idx == step - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        seen.extend(batch.indices.tolist())
        return original(self, batch, batch_idx)

    seen: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(SpeechRecognition, "training_step", signalled)
        with pytest.raises(SystemExit) as stopped:
            train("cut", *OPTIONS, *options, "callbacks.last.every_n_train_steps=null")
        assert stopped.value.code == 128 + signal.SIGUSR1
        step = 0
        cut = train("cut", *OPTIONS, *options, "resume=auto")
    assert difference(whole, cut) == 0
    assert rows(cut) == rows(whole)
    assert set(Counter(seen).values()) == {3}


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("steps", [13, 18])
def test_a_signal_in_the_last_of_max_steps(train, monkeypatch, steps, validated):
    """The validation of that step comes when the run is resumed."""
    options = [*OPTIONS, f"max_steps={steps}"]
    if not validated:
        options = [option for option in options if "callbacks" not in option]
        options += ["data.validation_speakers=0", "callbacks=[checkpoints]"]
    whole = train("whole", *options)
    original = SpeechRecognition.training_step

    def signalled(self, batch, batch_idx):
        if self.global_step == steps - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SpeechRecognition, "training_step", signalled)
        with pytest.raises(SystemExit):
            train("cut", *options)
    cut = train("cut", *options, "resume=auto")
    assert difference(whole, cut) == 0
    assert rows(cut) == rows(whole) and ("val_wer" in rows(cut)[-1]) == validated
    assert torch.load(cut / "checkpoints/last.ckpt")["global_step"] == steps


def test_a_signal_during_validation(train, whole, monkeypatch):
    original, calls = SpeechRecognition.validation_step, []

    def signalled(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, batch, batch_idx)

    monkeypatch.setattr(SpeechRecognition, "validation_step", signalled)
    with pytest.raises(SystemExit) as stopped:
        train("cut", *OPTIONS)
    assert stopped.value.code == 128 + signal.SIGTERM
    cut = train("cut", *OPTIONS, "resume=auto")
    assert difference(whole, cut) == 0
    assert rows(cut) == rows(whole)


def test_a_signal_during_the_final_evaluation(train, whole, monkeypatch):
    """All is saved by then: it stops at once, and is scored when it comes back."""
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "finish", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(SystemExit) as stopped:
            train("cut", *OPTIONS)
    assert stopped.value.code == 128 + signal.SIGUSR1
    cut = train("cut", *OPTIONS, "resume=auto")
    assert (cut / "evaluation/validation/summary.json").exists()
    assert difference(whole, cut) == 0
    assert rows(cut) == rows(whole)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_sigterm_ends_it_at_once(train, monkeypatch):
    def impatient(self, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SpeechRecognition, "training_step", impatient)
    with pytest.raises(SystemExit, match=r"^interrupted; go on .* resume=auto"):
        train("run", *OPTIONS)


def test_a_job_that_is_started_again_goes_on(train, whole, monkeypatch):
    """Slurm and torchrun repeat the same command, which says nothing of `resume`."""
    with killed(monkeypatch, "on_train_batch_start", step=13):
        train("cut", *OPTIONS)
    with pytest.raises(ConfigError, match="resume=auto"):
        train("cut", *OPTIONS)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert difference(whole, train("cut", *OPTIONS)) == 0


def test_what_time_cut_off_is_made_up_for(train, monkeypatch):
    """`trainer.max_time` ends a run within an epoch; resumed, the epoch's other utterances are met, too."""
    options = [option for option in OPTIONS if "callbacks" not in option]
    whole = train("whole", *options)
    original = SpeechRecognition.training_step
    seen: list[int] = []

    def stop(self, batch, batch_idx):
        seen.extend(batch.indices.tolist())
        if self.global_step in (4, 12, 13):  # as Lightning's timer does
            self.trainer.should_stop = True
        return original(self, batch, batch_idx)

    monkeypatch.setattr(SpeechRecognition, "training_step", stop)
    for _ in range(4):
        cut = train("cut", *options, "resume=auto")
    assert set(Counter(seen).values()) == {3}
    first, second = (torch.load(run / "checkpoints/last.ckpt")["state_dict"] for run in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("callbacks", ["checkpoints", "checkpoints,snapshots"])
def test_max_steps_are_resumed_from_the_end_of_an_epoch(train, monkeypatch, callbacks):
    options = [option for option in OPTIONS if "callbacks" not in option]
    options += [f"callbacks=[{callbacks}]", "max_steps=22"]
    options += ["callbacks.snapshots.every_n_epochs=1"] if "snapshots" in callbacks else []
    whole = train("whole", *options)
    for step in (9, 18):
        with killed(monkeypatch, "on_train_batch_start", step=step):
            train("cut", *options, "resume=auto")
    cut = train("cut", *options, "resume=auto")
    assert difference(whole, cut) == 0
    assert rows(cut) == rows(whole)
    assert torch.load(cut / "checkpoints/last.ckpt")["global_step"] == 22
    train("cut", *options, "resume=auto")  # there is nothing left to do
    assert difference(whole, cut) == 0


@pytest.mark.parametrize("interval", ["3", "0.4"])
def test_accumulated_batches_are_not_parted_by_a_validation(train, monkeypatch, interval):
    options = [option for option in OPTIONS if "every_n" not in option]
    options += ["trainer.accumulate_grad_batches=2", f"+trainer.val_check_interval={interval}"]
    options += ["callbacks.last.every_n_train_steps=null", "callbacks.best.save_top_k=-1", "data.batch_seconds=4"]
    whole = train("whole", *options)
    with killed(monkeypatch, "on_train_batch_start", step=5):
        train("cut", *options)
    assert difference(whole, train("cut", *options, "resume=auto")) == 0


def test_accumulated_batches_are_not_parted_by_the_clock(train, monkeypatch):
    options = [*OPTIONS, "trainer.accumulate_grad_batches=2", "+trainer.max_time=00:01:00:00"]
    whole = train("whole", *options)

    def third_batch(self, trainer):
        trainer.should_stop |= trainer.fit_loop.epoch_loop.batch_progress.current.ready == 3

    with monkeypatch.context() as patch:
        patch.setattr(Timer, "_check_time_remaining", third_batch)
        cut = train("cut", *options)
    assert torch.load(cut / "checkpoints/last.ckpt")["global_step"] == 2
    assert difference(whole, train("cut", *options, "resume=auto")) == 0


def test_what_was_stopped_early_is_not_trained_on(train, monkeypatch):
    options = [*OPTIONS, "epochs=12", "callbacks.early_stopping.patience=0", "+callbacks.early_stopping.min_delta=1000"]
    whole = train("whole", *options)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run_module, "finish", lambda *arguments: (_ for _ in ()).throw(Killed))
        train("cut", *options)
    cut = train("cut", *options, "resume=auto")
    assert torch.load(cut / "checkpoints/last.ckpt")["epoch"] == 2
    assert difference(whole, cut) == 0


@pytest.mark.parametrize(("interval", "validations"), [(4, 7), (14, 2)])  # the last step is one, too
def test_plateau_counts_validations(train, interval, validations):
    options = ["trainer.check_val_every_n_epoch=null", f"+trainer.val_check_interval={interval}", "max_steps=26"]
    run = train("run", *OPTIONS, *options, "schedule=plateau")
    assert torch.load(run / "checkpoints/last.ckpt")["lr_schedulers"][0]["last_epoch"] == validations


def test_plateau_is_resumed(train, monkeypatch):
    options = [option for option in OPTIONS if "callbacks" not in option]
    options += ["schedule=plateau", "schedule.patience=0", "callbacks.last.every_n_train_steps=null"]
    whole = train("whole", *options)
    with killed(monkeypatch, "on_train_batch_start", step=9):
        train("cut", *options)
    cut = train("cut", *options, "resume=auto")
    first, second = (torch.load(run / "checkpoints/last.ckpt")["lr_schedulers"] for run in (whole, cut))
    assert first == second and first[0]["last_epoch"] == 3
    assert difference(whole, cut) == 0


def test_checkpoints_by_the_clock(train, monkeypatch):
    saved = []
    original = checkpoints.AtomicCheckpoints.save_checkpoint

    def save(self, checkpoint, path, storage_options=None):
        saved.append(Path(path).name)
        original(self, checkpoint, path)

    monkeypatch.setattr(checkpoints.AtomicCheckpoints, "save_checkpoint", save)
    run = train("run", *OPTIONS, "callbacks.last.every_n_train_steps=null", "callbacks.last.every_n_minutes=0")
    assert saved.count("last.ckpt") == 27 + 1
    assert len(list((run / "checkpoints").glob("last*"))) == len(list((run / "checkpoints").glob("best*"))) == 1


# --- disks


def disk_full(run: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def read_only(run: Path) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize("fault", [disk_full, read_only], ids=["full", "read-only"])
def test_the_disk_fails_while_a_checkpoint_is_written(train, whole, monkeypatch, tmp_path, fault):
    """Half of it is written; the message says what to do, and the earlier checkpoint still loads."""
    calls = []

    def fail(descriptor):
        calls.append(os.fstat(descriptor).st_size)
        if len(calls) == 3:
            os.ftruncate(descriptor, calls[-1] // 2)
            fault(tmp_path / "cut")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "fsync", fail)
        with pytest.raises(CheckpointError, match=r"cannot be written \((No space|Read-only).*resume=auto"):
            train("cut", *OPTIONS)
    assert [path.suffix for path in (tmp_path / "cut/checkpoints").iterdir()] == [".ckpt"]
    assert torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    cut = train("cut", *OPTIONS, "resume=auto")
    assert difference(whole, cut) == 0
    assert rows(cut) == rows(whole)


def test_a_file_may_not_be_so_large(train, whole, tmp_path):
    """A limit of the system, met in the middle of writing."""
    size = (whole / "checkpoints/last.ckpt").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            train("cut", *OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "cut/checkpoints").iterdir())


def test_the_folder_vanishes(train, monkeypatch, tmp_path):
    original = SpeechRecognition.on_train_batch_start

    def vanish(self, batch, batch_idx):
        if self.global_step == 3:
            shutil.rmtree(tmp_path / "run")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(SpeechRecognition, "on_train_batch_start", vanish)
    with pytest.raises(CheckpointError, match=r"run.* cannot be written .*bring the folder back"):
        train("run", *OPTIONS)
    assert not (tmp_path / "run").exists()
