"""A rank that is gone is named, and the others end, instead of waiting for it."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from typing import Any

import lightning as L
import torch.distributed
from lightning.pytorch.callbacks import Callback

from asr.errors import ConfigError

BEAT = 0.5
"""Seconds between signs of life."""


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
        self.timeout = timeout
        self.store: Any = None
        self.trainer: L.Trainer | None = None
        self.stopped = threading.Event()
        self.hosts: list[str] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size == 1:
            return
        self.trainer = trainer
        self.rank, self.world_size = trainer.global_rank, trainer.world_size
        hosts: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(hosts, f"{socket.gethostname()}, process {os.getpid()}")
        self.hosts = hosts
        # a connection of its own: the main thread may be waiting on the other
        self.store = torch.distributed.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        self.stopped.clear()
        threading.Thread(target=self._watch, name="lost-ranks", daemon=True).start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.stopped.set()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.stopped.set()

    def find(self) -> str:
        """What became of lost ranks, "" if there are none; takes a second or two."""
        if self.store is None or self.trainer is None:
            return ""
        children = getattr(self.trainer.strategy.launcher, "procs", [])
        ended = {k: status for k, process in enumerate(children, 1) if (status := process.poll())}
        if ended:
            return " and ".join(f"{self._name(rank)} ended with status {status}" for rank, status in ended.items())
        try:
            before = self._beats()
            time.sleep(3 * BEAT)
            silent = [rank for rank, beats in self._beats().items() if beats == before[rank]]
        except RuntimeError:  # the store's errors, and torch.distributed's, are such
            silent = [0]
        return " and ".join(f"{self._name(rank)} gives no sign of life" for rank in silent)

    def _beats(self) -> dict[int, int]:
        return {rank: self.store.add(f"beats/{rank}", 0) for rank in range(self.world_size) if rank != self.rank}

    def _name(self, rank: int) -> str:
        return f"rank {rank} ({self.hosts[rank]})"

    def _watch(self) -> None:
        heard = dict.fromkeys(range(self.world_size), (-1, time.monotonic()))
        while not self.stopped.wait(BEAT):
            now = time.monotonic()
            try:
                self.store.add(f"beats/{self.rank}", 1)
                for rank, beats in self._beats().items():
                    if beats != heard[rank][0]:
                        heard[rank] = beats, now
                heard[self.rank] = 0, now
            except RuntimeError:  # the store is gone, and with it rank 0
                heard = {rank: (beats, now if rank else then) for rank, (beats, then) in heard.items()}
            silent = [rank for rank, (_, then) in heard.items() if now - then > self.timeout]
            if silent and not self.stopped.is_set():
                lost = " and ".join(map(self._name, silent))
                print(
                    f"error: no sign of life of {lost} for {self.timeout:g} s: this rank, {self.rank}, ends, too. "
                    "Go on with resume=auto.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
