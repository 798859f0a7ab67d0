"""Training and recognition on a device that is not the CPU, without one: see `tests.other_device`."""

from __future__ import annotations

import csv
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import PHONES, SMALL, composed

LAYERS = ("encoder.layers=2", "encoder.width=16")
AS_ON_THE_CPU = ("encoder.dropout=0", "trainer.log_every_n_steps=1")


@pytest.fixture(scope="module")
def apart() -> Iterator[ProcessPoolExecutor]:
    """A process of its own, where there is the other device."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def train_twice(out: Path, options: list[str]) -> tuple[list[float], list[float], list[list[str]]]:
    """The losses of each step on the CPU and on the other device, and the waits in each step there."""
    import asr.training.module
    from asr.training.run import train
    from tests.other_device import other_device, waits

    steps, training_step = [], asr.training.module.SpeechRecognition.training_step

    def watched(*args):
        before = len(waits)
        loss = training_step(*args)
        steps.append(waits[before:])
        return loss

    small = [option for option in SMALL if not option.startswith(("trainer=", "encoder."))]
    losses = []
    for device in ("cpu", "other"):
        where = [f"trainer.accelerator={device}", "trainer.devices=1", f"out={out / device}"]
        if device == "other":
            where.append("+trainer.strategy=other")
            asr.training.module.SpeechRecognition.training_step = watched
        config = composed(*small, *AS_ON_THE_CPU, *where, *options)
        with other_device():
            train(config)
        with (out / device / "metrics.csv").open(newline="") as file:
            losses.append([float(row["train_loss"]) for row in csv.DictReader(file) if row.get("train_loss")])
    asr.training.module.SpeechRecognition.training_step = training_step
    return *losses, steps


CASES = [
    (
        ["encoder=vgg_blstm_fine", *LAYERS, "encoder.channels=[4,4,4,4]", "encoder.weight_dropout=0",
         "objective=cr_ctc", "augment=[speed_wide,specaugment]", "callbacks=[checkpoints,ema]",
         "trainer.accumulate_grad_batches=2"],
        [],
    ),
    (["encoder=blstm", *LAYERS, "augment=[tempo,vtlp]", *PHONES], ["tolist"]),  # what is said tells the phones
    (["encoder=conformer", "encoder.layers=1", "augment=[noise,reverb,telephone,volume]", "decoder=beam"], []),
    (
        ["encoder=conv_blstm_ds2", *LAYERS, "objective=inter_ctc", "objective.intermediate_layers=[1]",
         "self_conditioning=[1]", "data.validation_speakers=0.25"],
        [],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "waits"), CASES)
def test_a_training_is_that_of_the_cpu_and_seldom_waits_for_the_device(apart, tones, tmp_path, options, waits):
    options = [f"data.train={tones}", "epochs=1", *options]
    cpu, other, waited = apart.submit(train_twice, tmp_path, options).result()
    assert len(cpu) > 1
    np.testing.assert_allclose(other, cpu, rtol=1e-3)
    assert waited == [waits] * len(waited)


def recognize(device: str) -> list[np.ndarray]:
    """What a model says of a batch and of a stream; and language models of sentences, one untrained, one trained."""
    import torch

    from asr.encoders import Lstm
    from asr.engines import TorchEngine
    from asr.featurizers import LogMel
    from asr.lm.lstm_training import LstmTraining
    from asr.model import AcousticModel
    from tests.lm.test_lstm import SMALL as SMALL_LM
    from tests.lm.test_lstm import model, sentences
    from tests.other_device import other_device

    torch.manual_seed(0)
    lm = model()
    encoder = Lstm(40, layers=2, width=16, lookahead=3, channels=4)
    acoustic = AcousticModel(LogMel(bands=40), encoder, 5)
    waveforms = [np.random.default_rng(k).normal(size=n).astype(np.float32) for k, n in enumerate((16000, 9000))]
    trainer = {"accelerator": device, "enable_progress_bar": False, "enable_model_summary": False}
    if device != "cpu":
        trainer |= {"strategy": device, "devices": 1}
    with other_device():
        engine = TorchEngine(acoustic, torch.device(device, 0) if device != "cpu" else torch.device(device))
        found = [engine(waveforms).numpy().log_probs]
        state = acoustic.start()
        found += [engine.step(part, state) for part in np.split(waveforms[0], [6000])] + [engine.finish(state)]
        found.append(lm.to(engine.device).score_batch(sentences(5)))
        trained = LstmTraining(**SMALL_LM | {"trainer": trainer, "held_out": 0.2}, epochs=2).fit(sentences(20))
        found.append(trained.to(engine.device).score_batch(sentences(5)))
    return found


def test_recognition_and_language_models_are_those_of_the_cpu(apart):
    cpu, other = apart.submit(recognize, "cpu").result(), apart.submit(recognize, "other").result()
    for theirs, ours in zip(other, cpu, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4)
