"""Several processes that lose one another, and random kills. Slow: each process starts anew."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import SMALL
from .test_interruption import rows
from .test_run import SCRIPTS, difference

pytestmark = pytest.mark.slow
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
OPTIONS = (
    *SMALL[1:], "trainer=cpu", "data.batch_seconds=6", "trainer.log_every_n_steps=1", "encoder.dropout=0.1",
    "callbacks=[checkpoints,ema,early_stopping]", "callbacks.early_stopping.patience=1000", "data.workers=1",
    "callbacks.last.every_n_train_steps=2", "+callbacks.notes._target_=tests.training.faults.Notes",
)  # fmt: skip


@pytest.fixture
def start(tones: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a training in a process group of its own."""
    started = []

    def run(name: str, *options: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
        arguments = [*OPTIONS, f"data.train={tones}", f"out={tmp_path / name}", *options]
        arguments.append(f"+callbacks.notes.path={tmp_path / name}-notes")
        log = (tmp_path / f"{name}.log").open("a")
        environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launcher, str(SCRIPTS / "train.py"), *arguments]
        started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True))
        return started[-1]

    yield run
    for process in started:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def notes(path: Path, rank: int = 0) -> list[list[int]]:
    file = path.with_name(f"{path.name}-notes-{rank}")
    return [[*map(int, line.split())] for line in file.open()] if file.exists() else []


def wait_for(happened: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("processes", [1, 2])
def test_twenty_kills(start, tmp_path, processes):
    """SIGKILL at random moments of starting, loading, training, validating and saving changes nothing in the end."""
    options = ("epochs=100", *(TWO if processes == 2 else ()))
    assert start("whole", *options).wait(600) == 0
    whole, cut, chance = tmp_path / "whole", tmp_path / "cut", random.Random(0)
    for _ in range(20):
        done = len(notes(cut))
        process = start("cut", *options, "resume=auto")
        if chance.random() < 0.2:
            time.sleep(chance.uniform(0, 10))
        else:
            wait_for(lambda done=done: len(notes(cut)) > done, process)
            time.sleep(chance.uniform(0, 0.8))
        assert process.poll() is None, "it ended before it was killed"
        kill(process)
    assert start("cut", *options, "resume=auto").wait(600) == 0
    assert difference(whole, cut) == 0
    assert rows(cut) == rows(whole)
    expected, repeated = Counter(), 0
    for rank in range(processes):
        lives = defaultdict(set)
        for _, epoch, batch, *utterances in notes(cut, rank):
            lives[epoch, batch].add(tuple(utterances))
            repeated += 1
        assert all(len(seen) == 1 for seen in lives.values())  # what was done again was done with the same utterances
        repeated -= len(lives)
        expected.update((epoch, k) for (epoch, _), [seen] in lives.items() for k in seen)
    assert set(expected.values()) == {1} and len(expected) == 100 * 35
    assert repeated <= 20 * 3 * processes  # it never goes back farther than to the last checkpoint


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_rank_is_named(start, tmp_path, lost, by):
    """The other one does not wait for it; then both go on."""
    options = ("epochs=300", *TWO, "lost_rank_timeout=5")
    process = start("run", *options)
    wait_for(lambda: len(notes(tmp_path / "run", 1)) > 5, process)
    [child] = {int(line[0]) for line in notes(tmp_path / "run", 1)}
    victim, survivor = (process.pid, child) if lost == 0 else (child, process.pid)
    os.kill(victim, by)
    end = time.monotonic() + 25
    while Path(f"/proc/{survivor}/cmdline").exists() and Path(f"/proc/{survivor}/cmdline").read_bytes():
        if survivor == process.pid and process.poll() is not None:
            break
        assert time.monotonic() < end, "the other rank still waits"
        time.sleep(0.1)
    kill(process)
    log = (tmp_path / "run.log").read_text()
    assert f"rank {lost} (" in log or f"[rank: {lost}] Child process" in log


def test_elastic_restart(start, tmp_path, monkeypatch):
    """torchrun starts all processes again when one is lost, and they go on."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2")
    options = ("epochs=30", *TWO)
    assert start("whole", *options).wait(300) == 0
    process = start("cut", *options, launcher=torchrun)
    wait_for(lambda: len(notes(tmp_path / "cut", 1)) > 20, process)
    [victim] = {line[0] for line in notes(tmp_path / "cut", 1)}
    os.kill(victim, signal.SIGKILL)
    assert process.wait(300) == 0
    assert difference(tmp_path / "whole", tmp_path / "cut") == 0
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert len({line[0] for line in notes(tmp_path / "cut", 1)}) == 2


def test_torchrun_on_two_nodes(start, tmp_path):
    """Both "nodes" are this machine."""
    options = ("epochs=3", *TWO[:2], "trainer.devices=1", "trainer.num_nodes=2")
    meeting = ("-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-port=29517")
    nodes = [start("two", *options, launcher=(*meeting, f"--node-rank={k}")) for k in range(2)]
    assert [node.wait(120) for node in nodes] == [0, 0]
    assert start("one", "epochs=3", *TWO).wait(120) == 0
    assert difference(tmp_path / "one", tmp_path / "two") == 0


def test_a_signal_to_one_process_stops_both(start, tmp_path):
    options = ("epochs=60", *TWO)
    assert start("whole", *options).wait(300) == 0
    for signals, status in ((signal.SIGUSR1, 128 + signal.SIGUSR1), (signal.SIGTERM, 128 + signal.SIGTERM)):
        process = start("cut", *options, "resume=auto")
        done = len(notes(tmp_path / "cut", 1))
        wait_for(lambda done=done: len(notes(tmp_path / "cut", 1)) > done + 9, process)
        os.kill(notes(tmp_path / "cut", 1)[-1][0], signals)  # rank 1
        assert process.wait(60) == status
    assert start("cut", *options, "resume=auto").wait(300) == 0
    assert difference(tmp_path / "whole", tmp_path / "cut") == 0
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.parametrize("first", [1, 2])
def test_another_number_of_processes(start, tmp_path, first):
    """The steps go on, within the epoch, with the same utterances and dropout."""
    ways = {1: ("trainer.accumulate_grad_batches=2",), 2: TWO}
    assert start("whole", "epochs=30", *ways[1]).wait(300) == 0
    process = start("cut", "epochs=30", *ways[first])
    wait_for(lambda: len(notes(tmp_path / "cut")) > 20, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert start("cut", "epochs=30", *ways[3 - first], "resume=auto").wait(300) == 0
    whole = [batch[1:] for batch in notes(tmp_path / "whole")]
    assert difference(tmp_path / "whole", tmp_path / "cut") < 1e-5
    met = Counter((epoch, k) for rank in (0, 1) for _, epoch, _, *ks in notes(tmp_path / "cut", rank) for k in ks)
    assert met == Counter((epoch, k) for epoch, _, *ks in whole for k in ks)
    assert "processes, after" in (tmp_path / "cut.log").read_text()
