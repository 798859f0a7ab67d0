"""Averaged checkpoints: the mean, what is refused, and the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asr.bundle import describe, load_pipeline, model_weights, pipeline_config, read_checkpoint, save_bundle
from asr.errors import CheckpointError, ConfigError
from asr.pipeline import build
from asr.training.averaging import average, last_checkpoints

CONFIG = {
    "text": {"_target_": "asr.text.Normalizer"},
    "tokenizer": {"_target_": "asr.tokenizers.Characters"},
    "featurizer": {"_target_": "asr.featurizers.LogMel", "bands": 20},
    "encoder": {"_target_": "asr.encoders.Blstm", "layers": 1, "width": 8, "channels": 2},
    "decoder": {"_target_": "asr.decoders.Greedy"},
    "normalization": "global",
}
TEXTS = ["one two three", "four five"]


def checkpoint(path: Path, seed: int, texts=TEXTS, **changes) -> Path:
    """A `.ckpt` or bundle of random weights."""
    torch.manual_seed(seed)
    config = CONFIG | changes
    pipeline = build(config, texts=texts)
    if config["normalization"] == "global":
        pipeline.model.normalization.set_statistics(torch.full((20,), float(seed)), torch.full((20,), 2.0))
    if path.suffix != ".ckpt":
        save_bundle(path, pipeline, pipeline_config(config), "")
        return path
    path.parent.mkdir(exist_ok=True)
    state = {f"model.{name}": value for name, value in pipeline.model.state_dict().items()}
    torch.save({"state_dict": state, "global_step": seed, "recognizer": describe(pipeline, config)}, path)
    return path


def test_the_mean(tmp_path):
    paths = [checkpoint(tmp_path / name, seed) for seed, name in enumerate(("a.ckpt", "bundle", "c.ckpt"))]
    pipeline, config = average(paths)
    states = [load_pipeline(path).model.state_dict() for path in paths]
    for name, value in pipeline.model.state_dict().items():
        torch.testing.assert_close(value, sum(state[name] for state in states) / 3)
    assert pipeline.model.normalization.mean[0] == 1
    save_bundle(tmp_path / "out", pipeline, config, "")
    loaded = load_pipeline(tmp_path / "out").model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in pipeline.model.state_dict().items())


def test_the_mean_of_equals_is_the_same(tmp_path):
    path = checkpoint(tmp_path / "a.ckpt", 1)
    pipeline, _ = average([path, path, path])
    states = pipeline.model.state_dict(), load_pipeline(path).model.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"encoder": CONFIG["encoder"] | {"channels": 4}}, r"encoder\.channels"),
        ({"normalization": "utterance"}, "normalization"),
        ({"texts": ["six"]}, "tokenizer's labels"),
    ],
)
def test_others_are_refused(tmp_path, changes, named):
    paths = [checkpoint(tmp_path / "a.ckpt", 0), checkpoint(tmp_path / "b.ckpt", 1, **changes)]
    with pytest.raises(CheckpointError, match=rf"b\.ckpt: cannot be averaged with .*a\.ckpt: they differ in .*{named}"):
        average(paths)


def test_one_makes_no_average(tmp_path):
    with pytest.raises(ConfigError, match="two or more, found 1"):
        average([checkpoint(tmp_path / "a.ckpt", 0)])


def test_the_last_of_a_run(tmp_path):
    for seed, name in ((30, "best-003"), (10, "best-001"), (20, "best-002"), (30, "last")):
        checkpoint(tmp_path / "checkpoints" / f"{name}.ckpt", seed)
    found = [read_checkpoint(path)["global_step"] for path in last_checkpoints(tmp_path, 2)]
    assert found == [20, 30]
    with pytest.raises(CheckpointError, match=r"of 3 steps, and last=4 .*snapshots"):
        last_checkpoints(tmp_path, 4)


def test_the_command(train, tones, tmp_path, capsys):
    from asr.cli import run

    out = train("run", "epochs=3", "data.batch_seconds=8", "callbacks.best.save_top_k=-1")
    arguments = [f"run={out}", "last=3", f"out={tmp_path / 'mean'}", f"manifest={tones}", "device=cpu"]
    run("average", arguments)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WER ") and ".ckpt" in line]
    assert len(rows) == 3
    states = [model_weights(read_checkpoint(path)) for path in (out / "checkpoints").glob("best-*.ckpt")]
    for name, value in load_file(tmp_path / "mean" / "model.safetensors").items():
        torch.testing.assert_close(value, sum(state[name] for state in states) / 3)
    with pytest.raises(SystemExit):
        run("average", arguments)
    assert "is there already" in capsys.readouterr().err
    again = [*arguments[2:3], f"checkpoints=[{out},{out / 'checkpoints' / 'last.ckpt'}]", "overwrite=true"]
    run("average", again)
    (tmp_path / "mean" / "LICENSE").touch()
    with pytest.raises(SystemExit):
        run("average", again)
    assert "holds LICENSE, too. Move it away" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("average", [f"out={tmp_path / 'other'}"])
    assert "Average what?" in capsys.readouterr().err


def test_snapshots_are_averaged_without_the_best_between_them(tmp_path):
    for seed, name in ((10, "snapshot-005"), (20, "snapshot-010"), (25, "best-013"), (30, "last")):
        checkpoint(tmp_path / "checkpoints" / f"{name}.ckpt", seed)
    assert [path.stem for path in last_checkpoints(tmp_path, 3)] == ["snapshot-005", "snapshot-010", "last"]
