"""Why a training ends before its last step, said so that a person can go on."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import torch

from asr.data.module import SpeechData
from asr.errors import AsrError, CheckpointError, TrainingError
from asr.training.folder import is_main_process
from asr.training.lost_ranks import LostRanks
from asr.training.module import SpeechRecognition
from asr.types import Batch

UNWRITABLE = tuple(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EFBIG", "EIO", "ESTALE")
    if hasattr(errno, name)
)
"""Errors of a disk that is full, read-only, or gone."""
COMMUNICATION = re.compile("gloo|NCCL|[Cc]onnection|TCPStore")
"""What the errors of torch.distributed say, most of which are plain RuntimeErrors."""


def leave(number: int, run: Path) -> int:
    """After a signal has stopped a run that is saved: back into Slurm's queue, unless it was SIGTERM.

    Slurm itself puts back what it preempts, and SIGTERM is also what `scancel` sends.

    Returns:
        the exit status: 128 + the signal's number on rank 0, and 0 on the others.
    """
    if not is_main_process():
        return 0  # a launcher takes anything else for a failure, and kills rank 0
    print(f"stopped, all is saved: go on with resume=auto out={run}", file=sys.stderr, flush=True)
    if (job := slurm_job()) and number != signal.SIGTERM and shutil.which("scontrol"):
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        said = f"could not be put back into the queue: {done.stderr.strip()}" if done.returncode else "queued again"
        print(f"job {job}: {said}", file=sys.stderr, flush=True)
    return 128 + number


def slurm_job() -> str | None:
    """The Slurm job of this process as `scontrol` takes it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def explain(
    error: Exception, run: Path, trainer: L.Trainer, module: SpeechRecognition, data: SpeechData
) -> AsrError | None:
    """What the error means to a person; `None` if it is a bug."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return TrainingError(out_of_memory(module.batch, module.model.sample_rate, not module.training, data))
    watch = next(callback for callback in trainer.callbacks if isinstance(callback, LostRanks))  # type: ignore[attr-defined]
    if COMMUNICATION.search(str(error)) and (lost := watch.find()):
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return TrainingError(f"{lost}; so this one cannot go on ({first}). Go on with resume=auto out={run}")
    if isinstance(error, OSError) and (error.errno in UNWRITABLE or not run.is_dir()):
        return CheckpointError(
            f"{run}: cannot be written ({error.strerror or error}). The last checkpoint is as it was. "
            f"Make room or bring the folder back, then go on with resume=auto out={run}"
        )
    return None


def out_of_memory(batch: Batch | None, sample_rate: int, validating: bool, data: SpeechData) -> str:
    """What was computed when the GPU's memory ran out, and what to lower."""
    key, bound = ("validation_batch_seconds", data.validation_batch_seconds) if validating else (
        "batch_seconds", data.batch_seconds,
    )  # fmt: skip
    if batch is None or not len(batch):
        return f"The GPU's memory ran out. Lower data.{key}={bound:g}."
    seconds = (batch.lengths / sample_rate).tolist()
    return (
        f"The GPU's memory ran out on a batch of {len(seconds)} utterances of {min(seconds):.1f} to "
        f"{max(seconds):.1f} s, {len(seconds) * max(seconds):.1f} s with padding. Lower data.{key}={bound:g} "
        "(`benchmark memory` finds how far)"
        + (
            f", or leave out long utterances with data.max_seconds={data.max_seconds:g}, "
            "or raise trainer.accumulate_grad_batches in turn for the same step."
            if not validating
            else "."
        )
    )
