"""Signals that ask a training to stop: remembered here, acted upon at the end of a batch."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
"""SIGTERM stops a training; after the others, sent ahead of a time limit, it also goes back into the queue."""


class Preempted(Exception):
    """Not an error: a signal asked to stop, and all that was done is saved.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by signal {number}")
        self.number = number


_received: list[int] = []
_at_once = False
_before: dict[int, Any] = {}


def own_stack() -> None:
    """From now on, Python's signal handlers have a stack of their own; and a crash shows where it was.

    oneDNN's LSTM computes with its stack pointer in the heap (its issue 4845, until 3.11.2): a handler on the common
    stack destroys what lies there, and the process is aborted before anything is saved.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable(2)


def install(at_once: bool = False) -> None:
    """From now on, and until `restore`, remember such a signal and go on; a second SIGTERM ends the process.

    Args:
        at_once: raise Preempted, as there is nothing to save.
    """
    global _at_once
    _at_once = at_once
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            _before.setdefault(number, signal.getsignal(number))
    take_over()


def take_over() -> None:
    """The same from others, such as Lightning's, that end with what was before them."""
    if threading.current_thread() is threading.main_thread():
        own_stack()
        for number in STOPPING:
            signal.signal(number, _answer)


def ignore() -> None:
    """In a helper process: a batch system signals all processes of a job, and the training, which answers, needs it."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    _mask("SIG_UNBLOCK", STOPPING)


@contextmanager
def held_back() -> Iterator[None]:
    """Signals wait: here until the end of the block, in a helper process that begins in it until it ignores them."""
    before = _mask("SIG_BLOCK", STOPPING)
    try:
        yield
    finally:
        _mask("SIG_SETMASK", before)


def _mask(how: str, numbers: Iterable[int]) -> set[int]:
    """Change which signals this thread holds back; those that it did before. Windows knows no such thing."""
    return signal.pthread_sigmask(getattr(signal, how), numbers) if hasattr(signal, "pthread_sigmask") else set()


def received() -> int:
    """The signal that asked to stop, the greatest where there were several; 0 for none."""
    return max(_received, default=0)


def restore() -> None:
    """Forget all, and answer signals as before `install`."""
    global _at_once
    _at_once = False
    _received.clear()
    if threading.current_thread() is threading.main_thread():
        for number, handler in _before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        _before.clear()


def _answer(number: int, frame: FrameType | None) -> None:
    if _at_once:
        raise Preempted(number)
    if number == signal.SIGTERM and number in _received:
        sys.exit(128 + number)
    if not _received and os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, f"\n{signal.Signals(number).name}: saving and stopping at the end of this batch\n".encode())
    _received.append(number)
