"""Work shared among processes."""

from __future__ import annotations

import os
import signal

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


def test_a_process_that_dies_is_an_error(three_cores):
    with pytest.raises(Exception, match="terminated abruptly"):
        list(in_processes(lambda k: os.kill(os.getpid(), signal.SIGKILL), range(3)))
