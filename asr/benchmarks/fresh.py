"""What only a process of its own shows: the time of a first decoding, and the memory that many take.

    python -m asr.benchmarks.fresh FOLDER UTTERANCES

prints the seconds from making the decoder to its first result, and the MiB by which the process grew after the first
hundredth of the utterances.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def decode_afresh(folder: Path, utterances: int, cache: Path) -> dict[str, float]:
    """Decode with a language model in a new process.

    Args:
        folder: holds an n-gram model, `lm`, and (B, T, V) log-probabilities, `posteriors.npy`; pieces of them are
            decoded.
        utterances: how many.
        cache: where compiled code is looked for and kept.

    Returns:
        seconds `first`, MiB `growth`.
    """
    command = [sys.executable, "-m", "asr.benchmarks.fresh", str(folder), str(utterances)]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _main(folder: Path, utterances: int) -> None:
    import torch

    from asr.benchmarks.peers import Posteriors, Task, beam_open
    from asr.benchmarks.posteriors import tokenizer
    from asr.benchmarks.report import peak_memory
    from asr.lm import Ngram

    log_probs = np.load(folder / "posteriors.npy")
    pieces = np.random.default_rng(0).integers((0, 0), (len(log_probs), log_probs.shape[1] - 50), (utterances, 2))
    task = Task(tokenizer(), Ngram.load(folder / "lm"), folder)
    started = time.perf_counter()
    decode = beam_open(task)
    decode(Posteriors(log_probs[0]))
    first, before, device = time.perf_counter() - started, 0.0, torch.device("cpu")
    for k, (row, frame) in enumerate(pieces.tolist()):
        if k == len(pieces) // 100:
            before = peak_memory(device)
        decode(Posteriors(log_probs[row, frame : frame + 50]))
    print(json.dumps({"first": first, "growth": peak_memory(device) - before}))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]))
