"""Work shared among processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest

from asr import signals
from asr.data.parallel import in_processes


@pytest.fixture
def three_cores(monkeypatch):
    monkeypatch.setattr("asr.data.parallel.processors", lambda: 3)


def test_in_order_and_in_several_processes(three_cores):
    """In a training, too, which answers signals itself: its helpers end, though they heed none."""
    signals.install()
    try:
        found = list(in_processes(lambda k: (k * k, os.getpid(), signal.getsignal(signal.SIGTERM)), range(50)))
    finally:
        signals.restore()
    assert [square for square, *_ in found] == [k * k for k in range(50)]
    assert os.getpid() not in {process for _, process, _ in found}
    assert {handler for *_, handler in found} == {signal.SIG_IGN}


def test_a_process_that_has_just_begun_heeds_no_signals_either(three_cores, monkeypatch):
    ignore = signals.ignore
    monkeypatch.setattr(signals, "ignore", lambda: (time.sleep(1.0), ignore()))

    def signal_all():
        while not (begun := multiprocessing.active_children()):
            time.sleep(0.01)
        for process in begun:
            for number in signals.STOPPING:
                os.kill(process.pid, number)

    threading.Thread(target=signal_all).start()
    assert list(in_processes(lambda k: signal.pthread_sigmask(signal.SIG_BLOCK, []), range(3))) == [set()] * 3
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_process_that_dies_is_an_error(three_cores):
    with pytest.raises(Exception, match="terminated abruptly"):
        list(in_processes(lambda k: os.kill(os.getpid(), signal.SIGKILL), range(3)))
