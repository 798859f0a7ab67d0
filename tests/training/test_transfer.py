"""Starting from a trained recognizer, freezing, and learning rates by names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from asr.bundle import load_config, load_pipeline
from asr.encoders import ConvBlstm, Crdnn
from asr.errors import CheckpointError, ConfigError
from asr.training.module import SpeechRecognition
from asr.training.run import set_up
from asr.training.transfer import Frozen, parameter_groups

from .conftest import SMALL, killed

SCRIPTS = Path(__file__).parents[2] / "scripts"
SHORT = ("epochs=2", "data.batch_seconds=8", "callbacks.last.every_n_train_steps=1")


@pytest.fixture
def source(train) -> Path:
    """A trained recognizer of the words low, middle and high."""
    return train("source", "epochs=1")


@pytest.fixture
def other_words(tones, tmp_path) -> str:
    """The tones with another word for one of them, as an option."""
    rows = [json.loads(line) for line in tones.open()]
    for row in rows:
        row |= {"text": row["text"].replace("high", "top"), "audio_filepath": str(tones.parent / row["audio_filepath"])}
    path = tmp_path / "other.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.train={path}"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "bundle" / "model.safetensors")


def prepared(config) -> SpeechRecognition:
    torch.manual_seed(0)
    return set_up(config)[1]


def test_starts_from_encoder_statistics_and_known_labels(source, configure, other_words, capsys):
    fresh = prepared(configure("new", other_words)).pipeline
    module = prepared(configure("new", other_words, f"init_from={source}"))
    old, new = load_pipeline(source), module.pipeline
    assert set(new.tokenizer.labels) - set(old.tokenizer.labels) == {"top"}
    expected, found = old.model.state_dict(), new.model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected if not name.startswith("head."))
    assert not torch.equal(found["normalization.mean"], torch.zeros_like(found["normalization.mean"]))
    for k, label in enumerate(new.tokenizer.labels):
        model, row = (fresh, k) if label == "top" else (old, old.tokenizer.labels.index(label))
        assert torch.equal(new.model.head.weight[k], model.model.head.weight[row])
        assert torch.equal(new.model.head.bias[k], model.model.head.bias[row])
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert "encoder, feature statistics, 3 of 4 labels of the head; new: 'top'" in " ".join(
        capsys.readouterr().out.split()
    )


def test_self_conditioning_knows_the_labels_too(train, configure, other_words):
    deep = ("encoder.layers=2", "self_conditioning=[1]")
    source = train("conditioned", "epochs=1", *deep)
    fresh = prepared(configure("new", other_words, *deep)).pipeline
    new, old = prepared(configure("new", other_words, *deep, f"init_from={source}")).pipeline, load_pipeline(source)
    for k, label in enumerate(new.tokenizer.labels):
        pipeline, column = (fresh, k) if label == "top" else (old, old.tokenizer.labels.index(label))
        assert torch.equal(new.model.conditioning.weight[:, k], pipeline.model.conditioning.weight[:, column])
    assert torch.equal(new.model.conditioning.bias, old.model.conditioning.bias)
    with pytest.raises(ConfigError, match=r"another encoder: self_conditioning=\[1\] \(here \[\]\)"):
        set_up(configure("new", "encoder.layers=2", f"init_from={source}"))


@pytest.mark.parametrize("place", ["", "bundle", "checkpoints/last.ckpt"])
def test_takes_all_of_a_recognizer_of_the_same_labels(source, configure, place):
    found = prepared(configure("new", f"init_from={source / place}")).model.state_dict()
    expected = weights(source)
    if place != "checkpoints/last.ckpt":  # the last one need not be the best
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(found["normalization.std"], expected["normalization.std"])


@pytest.mark.parametrize(
    "options, message",
    [
        (["encoder.width=20"], r"another encoder: encoder\.width=24 \(here 20\)\. Say the same"),
        (["encoder=gru"], r"another encoder: encoder=blstm \(here gru\), encoder\.projection=0 \(here null\)\. Say"),
        (["featurizer.bands=40"], r"other features: featurizer\.bands=80 \(here 40\)"),
        (["featurizer=mfcc"], r"other features: featurizer=log_mel \(here mfcc\)\. Say"),
        (["normalization=utterance"], r"other features: normalization=global \(here utterance\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_keys(source, configure, options, message):
    with pytest.raises(ConfigError, match=message):
        set_up(configure("new", f"init_from={source}", *options))


def test_options_of_no_weight_may_differ(source, configure, capsys):
    found = prepared(configure("new", f"init_from={source}", "encoder.dropout=0.15", "text.case=upper")).model
    said = " ".join(capsys.readouterr().out.split())
    assert f"; was trained with encoder.dropout={load_config(source)['encoder']['dropout']} (here 0.15)" in said
    assert torch.equal(found.encoder.layers[0].weight_ih_l0, load_pipeline(source).model.encoder.layers[0].weight_ih_l0)


def test_options_that_an_older_release_did_not_have(source, configure):
    config = source / "bundle" / "config.yaml"
    config.write_text("".join(line for line in config.open() if "floor:" not in line))
    prepared(configure("new", f"init_from={source}"))
    with pytest.raises(ConfigError, match=r"featurizer\.floor=1e-06 \(here 0\.1\)"):
        set_up(configure("new", f"init_from={source}", "featurizer.floor=0.1"))


def test_nothing_to_start_from(configure, tmp_path):
    with pytest.raises(CheckpointError, match=r"init_from: checkpoint=.*nowhere: no recognizer there"):
        set_up(configure("new", f"init_from={tmp_path / 'nowhere'}"))


@pytest.mark.parametrize("step", [4, 13])
def test_a_resumed_run_ends_alike_without_its_source(source, train, monkeypatch, step):
    options = (
        *SHORT, f"init_from={source}", "freeze=[encoder.subsampling,head]", "freeze_epochs=1",
        "learning_rates={encoder:0.5,encoder.layers.0.bias*:0.1}",
    )  # fmt: skip
    whole = weights(train("whole", *options))  # nine steps an epoch

    with killed(monkeypatch, "on_train_batch_end", step=step):
        train("cut", *options)
    shutil.rmtree(source)
    cut = weights(train("cut", *options, "resume=auto"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_frozen_for_good(source, train):
    frozen = ("encoder.subsampling.", "encoder.norms.0.", "head.bias")
    run = train("run", *SHORT, f"init_from={source}", "freeze=[encoder.subsampling,'*.norms.0',head.bias]")
    before, after = weights(source), weights(run)
    same = {name for name in before if torch.equal(before[name], after[name])}
    statistics = {name for name in before if name.startswith(("featurizer.", "normalization."))}
    assert same - statistics == {name for name in before if name.startswith(frozen)}


@pytest.mark.parametrize("epochs", [None, 1])
def test_frozen_layers_keep_all_of_their_weights(configure, epochs):
    module = prepared(configure("run", "encoder.weight_dropout=0.5", "encoder.dropout=0"))
    features, lengths = torch.randn(2, 40, 80), torch.tensor([40, 30])
    for epoch, frozen in enumerate((True, epochs is None)):
        module.train()
        Frozen(module, ["encoder.layers"], epochs).on_train_batch_start(SimpleNamespace(current_epoch=epoch))
        one, other = (module.model.encoder(features, lengths)[0] for _ in range(2))
        assert torch.equal(one, other) == frozen


def test_two_processes_freeze_as_one(tones, tmp_path, train):
    options = ("epochs=2", "data.batch_seconds=6", "augment=[]", "encoder.dropout=0", "freeze_epochs=1")
    options = (*options, "freeze=[encoder.subsampling,encoder.layers]", "learning_rates={head:2}")
    one = train("one", *options, "trainer.accumulate_grad_batches=2")
    two = tmp_path / "two"
    devices = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    arguments = [*SMALL[1:], *devices, *options, f"data.train={tones}", f"out={two}"]
    subprocess.run([sys.executable, SCRIPTS / "train.py", *arguments], check=True, timeout=300)
    a, b = weights(one), weights(two)
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-5


class Net(L.LightningModule):
    """Three epochs of three steps on noise; keeps its state after each epoch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        below = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.model = nn.ModuleDict({"below": below, "lstm": nn.LSTM(8, 5), "head": nn.Linear(5, 2)})
        self.states, self.modes = [], []

    def train_dataloader(self):
        return torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))

    def training_step(self, batch, _):
        self.modes.append({name for name, part in self.named_modules() if not part.training})
        return 100 * self.model["head"](self.model["lstm"](self.model["below"](batch))[0]).square().mean()

    def configure_optimizers(self):
        groups, _ = parameter_groups(self, None)
        return torch.optim.AdamW(groups, lr=0.1)

    def on_train_epoch_end(self):
        self.states.append({name: value.clone() for name, value in self.state_dict().items()})


def fit(patterns, epochs) -> Net:
    net = Net()
    frozen = Frozen(net, patterns, epochs)
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", callbacks=[frozen], gradient_clip_val=0.1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(net)
    return net


@pytest.mark.filterwarnings("ignore")
def test_frozen_for_some_epochs():
    start, net = Net().state_dict(), fit(["below", "lstm"], 2)
    held = {name for name in start if not name.startswith("model.head")}
    parameters = {name for name, _ in net.named_parameters()}
    for state in net.states[:2]:  # the running statistics of the batch norm, too
        assert all(torch.equal(state[name], start[name]) for name in held)
        assert not torch.equal(state["model.head.weight"], start["model.head.weight"])
    assert not any(torch.equal(net.states[2][name], start[name]) for name in held)
    assert net.modes[:6] == [{"model.below", "model.below.0", "model.below.1", "model.below.2"}] * 6
    assert net.modes[6:] == [set()] * 3
    steps = {name: int(net.optimizers().state[p]["step"]) for name, p in net.named_parameters()}
    assert steps == {name: 9 if name.startswith("model.head") else 3 for name in parameters}


@pytest.mark.filterwarnings("ignore")
def test_what_is_held_for_all_epochs_is_as_if_it_had_no_gradients():
    """Its gradients count neither in clipping nor in the step."""
    held, frozen = fit(["below", "lstm.*_ih_*"], 3), fit(["below", "lstm.*_ih_*"], None)
    assert all(p.grad is None for name, p in frozen.named_parameters() if "below" in name or "_ih_" in name)
    for one, other in zip(held.states, frozen.states, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_each_parameter_has_the_multiple_of_its_longest_name():
    net = Net()
    groups, multiples = parameter_groups(net, {"*": 0.5, "below": 0.1, "below.1": {"weight": 3}, "lstm.bias_*": 2})
    found = {id(p): (m, g.get("weight_decay")) for g, m in zip(groups, multiples, strict=True) for p in g["params"]}
    assert {name: found[id(p)] for name, p in net.model.named_parameters()} == {
        "below.0.weight": (0.1, None), "below.0.bias": (0.1, 0.0), "below.1.weight": (3, 0.0),
        "below.1.bias": (0.1, 0.0), "lstm.weight_ih_l0": (0.5, None),
        "lstm.weight_hh_l0": (0.5, None), "lstm.bias_ih_l0": (2, 0.0),
        "lstm.bias_hh_l0": (2, 0.0), "head.weight": (0.5, None), "head.bias": (0.5, 0.0),
    }  # fmt: skip
    assert sum(len(group["params"]) for group in groups) == 10


@pytest.mark.parametrize("encoder", [ConvBlstm(80, conv_norm="layer"), ConvBlstm(80), Crdnn(80)])
def test_norms_and_biases_are_not_decayed(encoder):
    groups, _ = parameter_groups(encoder, None)
    kept = {id(p) for group in groups if group.get("weight_decay") == 0 for p in group["params"]}
    assert {name for name, p in encoder.named_parameters() if id(p) in kept} == {
        name for name, _ in encoder.named_parameters() if "norms." in name or "bias" in name
    }


@pytest.mark.parametrize("schedule", ["onecycle", "warmup_cosine", "noam", "constant"])
def test_schedules_keep_the_multiples(configure, schedule):
    config = configure("run", f"schedule={schedule}", "learning_rates={encoder:0.1,encoder.norms:0.3}", "freeze=[head]")
    module = prepared(config)
    found = module.configure_optimizers()
    optimizer, scheduler = found["optimizer"], found["lr_scheduler"]["scheduler"]
    learning = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    names = {name: p for name, p in module.model.named_parameters() if not name.startswith("head")}
    assert set(learning) == {id(p) for p in names.values()}
    plain = prepared(configure("run", f"schedule={schedule}")).configure_optimizers()
    for _ in range(module.steps):
        rate = plain["optimizer"].param_groups[0]["lr"]
        for name, parameter in names.items():
            multiple = 0.3 if "norms" in name else 0.1
            assert learning[id(parameter)]["lr"] == pytest.approx(multiple * rate)
        for stepped, schedules in ((optimizer, scheduler), (plain["optimizer"], plain["lr_scheduler"]["scheduler"])):
            stepped.step()
            schedules.step()


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["freeze=[encoder.layer.0]"],
            "freeze: the model has no parameters 'encoder.layer.0'. Did you mean encoder.l",
        ),
        (["freeze=['*']"], "nothing is left to learn"),
        (["freeze=5"], "freeze=5: must name parameters"),
        (["freeze_epochs=2"], "freeze_epochs=2: nothing is frozen"),
        (
            ["learning_rates={head.weights:2}"],
            "learning_rates: the model has no parameters 'head.weights'. Did you",
        ),
        (["learning_rates={head:0}"], r"learning_rates: head: 0 must be a number above 0\. freeze=\[head\] keeps it"),
        (["learning_rates=0.1"], r"learning_rates=0\.1: must name parameters"),
    ],
)
def test_wrong_names(configure, options, message):
    with pytest.raises(ConfigError, match=message):
        set_up(configure("run", *options))
