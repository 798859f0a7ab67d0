"""The folder of a run: one for all ranks, never another run's."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from asr.errors import CheckpointError, ConfigError

RUN_ID = "ASR_RUN_ID"


def run_id() -> str:
    """What the run's default folder is called: the same on every rank and after a requeue.

    The process that starts first sets it for those it launches; under torchrun and Slurm it is the job's.

    Raises:
        ConfigError: torchrun gives no name that its processes share.
    """
    if RUN_ID not in os.environ:
        job = [os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")]
        job = [name for name in job if name and name != "none"]
        if not job and "TORCHELASTIC_RUN_ID" in os.environ:
            raise ConfigError("out: has to be given under torchrun, as its processes start at different times: out=DIR")
        os.environ[RUN_ID] = job[0] if job else time.strftime("%Y-%m-%d_%H-%M-%S")
    return os.environ[RUN_ID]


def is_main_process() -> bool:
    """Whether this process is rank 0, or the only one."""
    # torchrun's; else those of the processes that Lightning starts, on nodes that a person has numbered; else srun's
    for names in (("RANK",), ("LOCAL_RANK", "NODE_RANK"), ("SLURM_PROCID",)):
        if ranks := [os.environ[name] for name in names if os.environ.get(name)]:
            return all(rank == "0" for rank in ranks)
    return True


WRITTEN = ("bundle", "config.yaml", "dropped.jsonl", "evaluation", "metrics.csv", "validation.jsonl")
"""What a run writes to its folder under fixed names."""


class RunFolder:
    """Opens a run's folder: a new one, or one to go on in, as jobs do that Slurm or torchrun has started again.

    Args:
        path: the folder.
        resume: "never", "auto" (go on if there is a checkpoint, else start), or the path of a `.ckpt`.
    """

    def __init__(self, path: Path, resume: str | None):
        self.path, self.resume = path, str(resume or "never")
        counts = (os.environ.get(name) for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
        self.restarted = any(count not in (None, "", "0") for count in counts)

    def checkpoint(self) -> Path | None:
        """The checkpoint to resume from, if any.

        Raises:
            ConfigError: the folder holds a run and nothing said to resume, or `resume` names no file.
            CheckpointError: those that are there are damaged.
        """
        found = list((self.path / "checkpoints").glob("*.ckpt"))
        if self.resume == "auto" or (self.restarted and found):
            if (furthest := self._furthest(found)) is None and is_main_process():
                self._refuse_to_write_over()
            return furthest
        path = None if self.resume == "never" else Path(self.resume)
        if path is not None and not path.is_file():
            raise ConfigError(f"resume={self.resume}: no such checkpoint. Say never, auto, or the path of a .ckpt.")
        ours = path is not None and path.resolve().is_relative_to(self.path.resolve())
        taken = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        if is_main_process() and taken and not ours and not self.restarted:
            raise ConfigError(
                f"out={self.path}: the folder exists and is not empty. Go on with resume=auto, or take another out=."
            )
        return path

    def _refuse_to_write_over(self) -> None:
        """A run that was stopped ahead of its first checkpoint begins anew; what else is there is not replaced."""
        begun = any(self.path.glob("run*.json"))
        written = ("bundle", "evaluation") if begun else WRITTEN
        if taken := [name for name in written if (self.path / name).exists()]:
            raise ConfigError(
                f"out={self.path}: there is no checkpoint that resume=auto could go on from, and a new run would write "
                f"over {', '.join(taken)}. Take another out=, or move that away."
            )

    def _furthest(self, found: list[Path]) -> Path | None:
        """`last.ckpt`, or what was written after it, of a later step; `None` if there are weights alone."""
        from asr.bundle import read_checkpoint

        steps, damaged = {}, []
        for path in found:
            try:
                content = read_checkpoint(path, mmap=True)
            except CheckpointError as error:
                damaged.append(error)
                continue
            if "optimizer_states" in content:
                steps[path] = content["global_step"]
        if damaged and not steps:
            raise damaged[0]
        if damaged and is_main_process():
            print(f"passed over: {' '.join(map(str, damaged))}", file=sys.stderr)
        last, written = self.path / "checkpoints" / "last.ckpt", {path: path.stat().st_mtime for path in steps}
        if last in steps:  # what is older may be of a course that was given up
            steps = {path: step for path, step in steps.items() if path == last or written[path] > written[last]}
        return max(steps, key=lambda path: (steps[path], written[path]), default=None)

    def create(self, config: Mapping[str, Any], precision: str) -> None:
        """Make the folder, and write what identifies the run; a resumed run keeps what it was started with.

        Args:
            config: the composed `train.yaml`.
            precision: that of the trainer, where the config has "auto".

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            attempt = len(list(self.path.glob("run*.json")))
            suffix = f"-{attempt}" if attempt else ""
            (self.path / f"config{suffix}.yaml").write_text(
                yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), "utf-8"
            )
            identity = provenance() | {"precision": precision}
            (self.path / f"run{suffix}.json").write_text(json.dumps(identity, indent=2) + "\n", "utf-8")
        except OSError as error:
            raise ConfigError(f"out={self.path}: cannot be written ({error.strerror}). Take another out=.") from None


def provenance() -> dict[str, Any]:
    """Command, versions, commit and machine of this run."""
    packages = ("torch", "torchaudio", "lightning", "hydra-core", "jiwer", "soundfile", "numpy", "asr-pipeline")
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
    }


def _git_commit() -> str | None:
    """The commit of this source, where it is a checkout and not an installed package."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None
