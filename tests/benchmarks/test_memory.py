"""The search for the largest batch, on a GPU that is imagined."""

from __future__ import annotations

import pytest
import torch

from asr import cli
from asr.benchmarks import memory
from asr.benchmarks.noise import write_noise
from asr.errors import ConfigError
from asr.training.module import SpeechRecognition
from asr.training.run import set_up
from tests.training.conftest import SMALL, composed


@pytest.mark.parametrize("limit", [0.4, 3.0, 25.0, 1234.5])
def test_largest(limit):
    tried = []

    def fits(number: float) -> bool:
        tried.append(number)
        return number <= limit

    found = memory.largest(fits, start=20.0)
    assert limit / 1.05 <= found <= limit
    assert len(tried) < 20


def test_nothing_fits():
    with pytest.raises(ConfigError, match="one short utterance does not fit"):
        memory.largest(lambda number: False, start=20.0)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), "CUDNN_STATUS_ALLOC_FAILED"])
def test_steps_are_tried_until_memory_runs_out(tmp_path, monkeypatch, error):
    """A whole training step of long and of short utterances: it fits until one of both is too much."""
    manifest = write_noise(tmp_path / "noise", 12, 0)
    config = composed(*SMALL, f"data.train={manifest}", "data.validation_speakers=0", f"out={tmp_path / 'run'}")
    trainer, module, data = set_up(config)
    losses, frames = SpeechRecognition.losses, []

    def limited(self, batch):
        if batch.waveforms.numel() > 60 * 16000:
            raise error if isinstance(error, Exception) else RuntimeError(f"cuDNN error: {error}")
        frames.append(batch.waveforms.shape)
        return losses(self, batch)

    monkeypatch.setattr(SpeechRecognition, "losses", limited)
    step = memory.Step(trainer, module, data)
    found = memory.largest(step, start=2 * data.train_seconds.max())
    assert 60 / 1.05 - data.train_seconds.max() < found <= 60 + data.train_seconds.max()
    ends = [16000 * min(data.train_seconds), 16000 * max(data.train_seconds)]
    assert sorted({shape[1] for shape in frames}) == pytest.approx(ends, abs=2)


def test_other_errors_are_not_taken_for_it(tmp_path, monkeypatch):
    manifest = write_noise(tmp_path / "noise", 4, 0)
    config = composed(*SMALL, f"data.train={manifest}", "data.validation_speakers=0", f"out={tmp_path / 'run'}")
    trainer, module, data = set_up(config)
    monkeypatch.setattr(SpeechRecognition, "losses", lambda self, batch: 1 / 0)
    step = memory.Step(trainer, module, data)
    with pytest.raises(ZeroDivisionError):
        step(10.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_needs_a_gpu(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.run("benchmark", ["memory", f"out={tmp_path / 'benchmark'}"])
    assert "needs a CUDA GPU, and torch finds none here" in capsys.readouterr().err
