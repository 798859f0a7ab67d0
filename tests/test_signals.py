import signal
import subprocess
import sys

import lightning as L
import pytest
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.demos.boring_classes import BoringModel

from asr import signals
from asr.training.checkpoints import Preemption

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


def test_a_fit_alone_leaves_signals_as_they_were(tmp_path):
    """And a run after it does."""
    before = [signal.getsignal(number) for number in signals.STOPPING]
    options = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    seen = []
    noted = LambdaCallback(on_train_batch_end=lambda *_: seen.append(signal.getsignal(signal.SIGTERM)))
    L.Trainer(max_steps=1, callbacks=[Preemption(tmp_path), noted], **options).fit(BoringModel())
    assert seen != [before[0]]
    assert [signal.getsignal(number) for number in signals.STOPPING] == before
    signals.install()
    signals.restore()
    assert [signal.getsignal(number) for number in signals.STOPPING] == before
