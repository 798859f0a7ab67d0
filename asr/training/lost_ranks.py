"""A rank that is gone is named, and the others end, instead of waiting for it."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch.distributed
from lightning.pytorch.callbacks import Callback

from asr.errors import ConfigError

BEAT = 1.0
"""Seconds between signs of life."""


def check_torchrun(environment: Mapping[str, str]) -> None:
    """Refuse restarts by torchrun that would fail, or hang, by chance: those whose processes share its store.

    What the ended processes wrote there is still there, and who comes first meets it (PyTorch issue 135712).

    Raises:
        ConfigError: torchrun is to restart several processes, and to keep its store.
    """
    get = environment.get
    restarts = get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and get("WORLD_SIZE", "1") != "1"
    if restarts and get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ConfigError(
            "torchrun --max-restarts: processes that start again could look for those that have ended. Set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment; for several nodes, let them meet by "
            "--rdzv-backend=c10d --rdzv-endpoint=HOST:PORT, not by --master-addr."
        )


class LostRanks(Callback):
    """Every rank gives signs of life in the store of the process group; one that gives none any more is lost.

    A process that waits in a collective for a lost rank cannot be woken: a thread ends it, with a message. What shows
    otherwise, such as a closed connection, is explained by `find`.

    Args:
        timeout: seconds without a sign of life, or without an answer of the store (which rank 0 keeps, or torchrun).
    """

    def __init__(self, timeout: float = 120.0):
        if timeout < 2 * BEAT:
            raise ConfigError(f"lost_rank_timeout={timeout}: must be {2 * BEAT:g} s or more.")
        check_torchrun(os.environ)
        self.timeout = timeout
        self.store: Any = None
        self.stopped = threading.Event()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size == 1:
            return
        self.children = getattr(trainer.strategy.launcher, "procs", [])
        self.rank = trainer.global_rank
        self.hosts: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(self.hosts, f"{socket.gethostname()}, process {os.getpid()}")
        # a connection of its own: the main thread may be waiting on the other
        self.store = torch.distributed.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        for rank in range(trainer.world_size):
            self.store.add(f"beats/{rank}", 0)  # reading waits for keys that are not there
        self.answered = time.monotonic()
        self.heard = {rank: (b"", self.answered) for rank in range(trainer.world_size) if rank != self.rank}
        self.stopped.clear()
        for task in (self._beat, self._watch):  # two, as a store whose process stands still does not answer
            threading.Thread(target=task, name="lost-ranks", daemon=True).start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.stopped.set()

    def find(self) -> str:
        """What became of lost ranks, "" if there are none; takes a second or two."""
        if self.store is None:
            return ""
        ended = {k: status for k, process in enumerate(self.children, 1) if (status := process.poll())}
        if ended:
            return " and ".join(f"{self._name(rank)} ended with status {status}" for rank, status in ended.items())
        asked = time.monotonic()
        time.sleep(3 * BEAT)
        silent = [rank for rank, (_, then) in self.heard.items() if then < asked] if self.answered > asked else [0]
        return " and ".join(f"{self._name(rank)} gives no sign of life" for rank in silent)

    def _name(self, rank: int) -> str:
        return f"rank {rank} ({self.hosts[rank]})"

    def _beat(self) -> None:
        while not self.stopped.wait(BEAT):
            with contextlib.suppress(RuntimeError):  # the store is gone, and with it what kept it
                self.store.add(f"beats/{self.rank}", 1)
                beats = self.store.multi_get([f"beats/{rank}" for rank in self.heard])
                for rank, count in zip(self.heard, beats, strict=True):
                    if count != self.heard[rank][0]:
                        self.heard[rank] = count, time.monotonic()
                self.answered = time.monotonic()

    def _watch(self) -> None:
        while not self.stopped.wait(BEAT):
            late = time.monotonic() - self.timeout
            silent = [rank for rank, (_, then) in self.heard.items() if then < late] if self.answered > late else [0]
            if silent and not self.stopped.is_set():
                lost = " and ".join(map(self._name, silent))
                message = f"error: no sign of life of {lost} for {self.timeout:g} s: this rank, {self.rank}, ends, too."
                print(message, "Go on with resume=auto.", file=sys.stderr, flush=True)
                os._exit(1)
