"""The commands that the README gives for Slurm, on a real one with two nodes on this machine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import SMALL
from .test_interruption import rows
from .test_run import SCRIPTS, difference

pytestmark = pytest.mark.cluster
ROOT = SCRIPTS.parent
OPTIONS = (
    *SMALL[1:], "trainer.accelerator=cpu", "data.batch_seconds=6", "trainer.log_every_n_steps=1",
    "callbacks.last.every_n_train_steps=null", "epochs=40",
)  # fmt: skip
DONE = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


def slurm(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_for(happened: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm with two nodes, which ends with the tests."""
    if os.geteuid() != 0 or not (shutil.which("slurmctld") or shutil.which("apt-get")):
        pytest.skip("Slurm is not installed, and only root can install it, by apt-get")
    folder = tmp_path_factory.mktemp("slurm")
    with (folder / "start.log").open("w") as log:  # not a pipe, which the daemons would keep open
        started = subprocess.run(["bash", Path(__file__).with_name("slurm.sh"), folder], stdout=log, stderr=log)
    if started.returncode == 77:
        pytest.skip(f"Slurm cannot be installed: {(folder / 'start.log').read_text()[-300:]}")
    assert started.returncode == 0, (folder / "start.log").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
        patch.setenv("OMP_NUM_THREADS", "1")
        # the README says "python"
        (folder / "bin").mkdir()
        (folder / "bin/python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        (folder / "bin/python").chmod(0o755)
        patch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
        yield
        wait_for(lambda: not slurm("squeue", "-h"))
        for pid in folder.glob("*.pid"):
            os.kill(int(pid.read_text()), 15)


@pytest.fixture(scope="module")
def whole(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes without a cluster come to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    options = ["trainer=ddp", "trainer.devices=2", *OPTIONS, f"data.train={tones}", f"out={out}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, SCRIPTS / "train.py", *options], check=True, timeout=300, env=environment)
    return out


def readme(beginning: str) -> list[str]:
    """The command of the README that begins so, with its nodes and devices as they are here, without its data."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    [line] = [line for line in lines if line.startswith(beginning)]
    words = shlex.split(line, comments=True)
    here = {"nodes": "2", "num_nodes": "2", "ntasks-per-node": "1", "devices": "1", "tasks_per_node": "1"}
    kept = []
    for word in words:
        key, given, _ = word.partition("=")
        name = key.lstrip("-").rsplit(".", 1)[-1]
        if given and name in here:
            kept.append(f"{key}={here[name]}")
        elif not re.match(r"\+experiment|corpus|out=|name=|seed=|--gpus|--partition|.*\.(gpus|partition)", word):
            kept.append(word)
    return kept


def same(run: Path, whole: Path) -> None:
    assert difference(run, whole) == 0
    assert rows(run) == rows(whole)


def test_srun(cluster, whole, tones, tmp_path):
    command = [*readme("srun"), *OPTIONS, f"data.train={tones}", f"out={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    same(tmp_path / "run", whole)


def test_sbatch_is_preempted_and_comes_back(cluster, whole, tones, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    [sbatch, *options] = readme("sbatch")
    job = slurm(sbatch, "--parsable", f"--chdir={ROOT}", f"--output={log}", *options, *OPTIONS, f"data.train={tones}",
                f"out={run}")  # fmt: skip

    def state() -> str:
        return re.search(r"JobState=(\w+)", slurm("scontrol", "show", "job", job))[1]  # type: ignore[index]

    wait_for(lambda: ((run / "metrics.csv").exists() and len(rows(run)) > 20) or state() in DONE)
    slurm("scancel", "--signal=USR1", job)  # as Slurm does ahead of the time limit, by the script's --signal
    wait_for(lambda: state() == "PENDING" or state() in DONE)
    assert "queued again" in log.read_text()
    done = len(rows(run))
    slurm("scontrol", "update", f"job={job}", "StartTime=now")  # Slurm would wait two minutes
    wait_for(lambda: state() in DONE)
    assert state() == "COMPLETED", log.read_text()
    assert "Restarts=1" in slurm("scontrol", "show", "job", job)
    assert "resuming    from" in log.read_text() and 20 < done < len(rows(run))
    same(run, whole)


def test_a_cancelled_job_does_not_come_back(cluster, tones, tmp_path):
    [sbatch, *options] = readme("sbatch")
    job = slurm(sbatch, "--parsable", f"--chdir={ROOT}", f"--output={tmp_path / 'log'}", *options, *OPTIONS,
                "epochs=1000", f"data.train={tones}", f"out={tmp_path / 'run'}")  # fmt: skip
    wait_for(lambda: (tmp_path / "run/metrics.csv").exists())
    slurm("scancel", job)
    wait_for(lambda: not slurm("squeue", "-h", "-j", job))
    assert "JobState=CANCELLED" in slurm("scontrol", "show", "job", job)
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()


def test_submitit(cluster, whole, tones, tmp_path):
    """A sweep of two seeds, a job each; the first is preempted."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install 'asr-pipeline[slurm]'")
    command = [
        *readme("python scripts/train.py -m"),
        *OPTIONS,
        f"data.train={tones}",
        "seed=0,1",
        f"hydra.sweep.dir={tmp_path}",
    ]
    command += [f"hydra.launcher.submitit_folder={tmp_path}/.submitit/%j", f"out={tmp_path}/${{seed}}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: (tmp_path / "0/metrics.csv").exists() and len(rows(tmp_path / "0")) > 20)
    first = slurm("squeue", "-h", "-t", "R", "-o", "%A").splitlines()[0]
    slurm("scancel", "--signal=USR2", first)  # submitit's
    wait_for(lambda: "PENDING" in slurm("scontrol", "show", "job", first))
    slurm("scontrol", "update", f"job={first}", "StartTime=now")
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    same(tmp_path / "0", whole)
    assert difference(tmp_path / "1", whole) > 0
    assert list((tmp_path / "0").glob("run-1.json"))  # it was begun twice
