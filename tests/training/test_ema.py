"""The moving average of the weights against its recursion, and what is saved of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asr.bundle import load_pipeline, model_weights, read_checkpoint
from asr.errors import CheckpointError, ConfigError
from asr.training.module import SpeechRecognition

OPTIONS = ("epochs=3", "data.batch_seconds=8", "callbacks=[checkpoints,ema]", "callbacks.last.every_n_train_steps=2")


@pytest.fixture
def steps(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """The weights ahead of the first step and after each."""
    found: list[dict[str, torch.Tensor]] = []

    def note(self, *_):
        if self.global_step == len(found):
            found.append({name: value.clone() for name, value in self.model.state_dict().items()})

    monkeypatch.setattr(SpeechRecognition, "on_train_start", note)
    monkeypatch.setattr(SpeechRecognition, "on_train_batch_end", note)
    return found


def averages(steps: list[dict[str, torch.Tensor]], decay: float) -> list[dict[str, torch.Tensor]]:
    """By the recursion, in double precision."""
    found = [{name: value.double() for name, value in steps[0].items()}]
    for n, weights in enumerate(steps[1:]):
        d = min(decay, (1 + n) / (10 + n))
        found.append({name: d * value + (1 - d) * weights[name].double() for name, value in found[-1].items()})
    return found


def assert_equal(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value.double(), expected[name].double(), atol=1e-6, rtol=0)


def bundle(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "bundle" / "model.safetensors")


@pytest.mark.parametrize("options", [(), ("trainer.accumulate_grad_batches=2",)])
def test_the_recursion(train, steps, options):
    run = train("run", *OPTIONS, "callbacks.ema.decay=0.4", "data.validation_speakers=0", *options)
    expected = averages(steps, 0.4)
    assert len(expected) > 6  # the decay grows, then stays
    assert_equal(bundle(run), expected[-1])
    last = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert_equal(model_weights(last), expected[-1])
    assert_equal(model_weights({"state_dict": last["current_model_state"]}), steps[-1])
    assert_equal(load_pipeline(run / "checkpoints" / "last.ckpt").model.state_dict(), expected[-1])
    assert "a moving average" in (run / "bundle" / "README.md").read_text()


def test_validation_sees_the_average(train, steps, monkeypatch):
    seen = {}

    def note(self, *_):
        seen[self.global_step] = {name: value.clone() for name, value in self.model.state_dict().items()}

    monkeypatch.setattr(SpeechRecognition, "on_validation_start", note, raising=False)
    original = SpeechRecognition.validation_step
    monkeypatch.setattr(SpeechRecognition, "validation_step", lambda *args: [note(args[0]), original(*args)][1])
    run = train("run", *OPTIONS)
    expected = averages(steps, 0.999)
    assert max(seen) == len(expected) - 1
    for step, weights in seen.items():
        assert_equal(weights, expected[step])
    (best,) = (run / "checkpoints").glob("best-*.ckpt")
    assert_equal(bundle(run), expected[read_checkpoint(best)["global_step"]])


def test_a_run_that_ended_early_goes_on_from_its_weights(train, monkeypatch):
    """Not from their average, though its bundle holds that."""
    options = (*OPTIONS, "data.validation_speakers=0")
    whole = train("whole", *options)

    def stop(self, *_):
        self.trainer.should_stop = True

    with monkeypatch.context() as patch:
        patch.setattr(SpeechRecognition, "on_train_epoch_end", stop)
        train("cut", *options)
    cut = train("cut", *options, "resume=auto")
    for key in ("state_dict", "current_model_state"):
        one, other = (read_checkpoint(run / "checkpoints" / "last.ckpt")[key] for run in (whole, cut))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    before = bundle(cut)
    assert all(torch.equal(value, bundle(whole)[name]) for name, value in before.items())
    train("cut", *options, "resume=auto")  # there is nothing left to do
    assert all(torch.equal(value, before[name]) for name, value in bundle(cut).items())


@pytest.mark.parametrize(
    "first, then", [("[checkpoints]", "[checkpoints,ema]"), ("[checkpoints,ema]", "[checkpoints]")]
)
def test_averaging_neither_begins_nor_ends_on_resume(train, first, then):
    train("run", "epochs=1", f"callbacks={first}")
    with pytest.raises(CheckpointError, match="callbacks: ema"):
        train("run", "epochs=1", "resume=auto", f"callbacks={then}")


def test_checkpoints_of_weights_only_are_refused(train):
    with pytest.raises(ConfigError, match="save_weights_only"):
        train("run", *OPTIONS, "+callbacks.best.save_weights_only=true")


def test_a_decay_out_of_range(train):
    with pytest.raises(ConfigError, match=r"callbacks\.ema\.decay=1.0"):
        train("run", *OPTIONS, "callbacks.ema.decay=1.0")
