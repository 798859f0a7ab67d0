import subprocess
import sys

import pytest

SIGNALLED = """
import signal, torch
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
torch.set_num_threads(1)
lstm, x = torch.nn.LSTM(512, 256, batch_first=True), torch.randn(8, 100, 512)
for _ in range(30):
    lstm.zero_grad()
    lstm(x)[0].sum().backward()
signal.setitimer(signal.ITIMER_REAL, 0)
"""


@pytest.mark.parametrize(
    "start", ["from asr import signals; signals.install()", "from asr import cli; cli.run('plugins')"]
)
def test_signals_in_the_middle_of_a_kernel(start):
    """Where their handlers run on the common stack, oneDNN's LSTM has them overwrite the heap."""
    done = subprocess.run([sys.executable, "-c", start + SIGNALLED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
