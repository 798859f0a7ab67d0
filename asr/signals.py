"""Signals that ask a training to stop: remembered here, acted upon at the end of a batch."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
"""SIGTERM stops a training; after the others, sent ahead of a time limit, it also goes back into the queue."""

_received: list[int] = []


def install() -> None:
    """From now on, remember such a signal and go on; a second SIGTERM ends the process."""
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            signal.signal(number, _remember)


def received() -> int:
    """The signal that asked to stop, the greatest where there were several; 0 for none."""
    return max(_received, default=0)


def forget() -> None:
    """Begin anew, in a process that trains again."""
    _received.clear()


def _remember(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGTERM and number in _received:
        sys.exit(128 + number)
    if not _received and os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, f"\n{signal.Signals(number).name}: saving and stopping at the end of this batch\n".encode())
    _received.append(number)
