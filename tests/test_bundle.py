from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from asr.bundle import STAGES, describe, load_pipeline, pipeline_config, save_bundle
from asr.errors import AsrError, CheckpointError, ConfigError
from asr.info import describe_checkpoint
from asr.pipeline import Pipeline, build
from asr.types import Emissions

CONFIG = {
    "text": {"_target_": "asr.text.Normalizer", "case": "upper"},
    "tokenizer": {"_target_": "asr.tokenizers.Characters"},
    "featurizer": {"_target_": "asr.featurizers.LogMel", "bands": 20},
    "encoder": {"_target_": "asr.encoders.Blstm", "layers": 1, "width": 8, "channels": 2},
    "decoder": {"_target_": "asr.decoders.Greedy"},
    "normalization": "global",
}
TOKENIZERS = {
    "characters": CONFIG["tokenizer"],
    "words": {"_target_": "asr.tokenizers.Words"},
    "sentencepiece": {"_target_": "asr.tokenizers.SentencePiece", "vocab_size": 13},
}
TEXTS = ["one two three four", "two one four", "three three one"] * 5


def trained(tokenizer="characters") -> tuple[Pipeline, dict]:
    torch.manual_seed(0)
    config = CONFIG | {"tokenizer": TOKENIZERS[tokenizer]}
    pipeline = build(config, texts=TEXTS)
    pipeline.model.normalization.set_statistics(torch.full((20,), -5.0), torch.full((20,), 2.0))
    pipeline.model.eval()
    return pipeline, pipeline_config(config | {"epochs": 3})


def test_info(bundle, tmp_path):
    (bundle / "README.md").write_text("---\nlicense: mit\nlanguage: [en, de]\n---\n# \x1b[31mred\n\n- test: WER 9 %\n")
    rows = dict(describe_checkpoint(bundle))
    assert rows["licence"] == "mit" and rows["language"] == "en, de" and rows["scores"] == "test: WER 9 %"
    assert rows["name"] == " [31mred", "a card cannot steer the terminal"
    assert rows["labels"].startswith("11: <blank>   E F H") and "Blstm on LogMel" in rows["model"]
    assert rows["data"] == "unknown" and rows["versions"].startswith("asr-pipeline ")
    other = dict(describe_checkpoint(write_ckpt(tmp_path / "a.ckpt")))
    assert (other["model"], other["labels"], other["licence"]) == (rows["model"], rows["labels"], "unknown")
    (bundle / "README.md").write_text("---\n[\n---\n")
    assert dict(describe_checkpoint(bundle))["licence"] == "unknown"
    edit(bundle, lambda c: c["decoder"].update(_target_="os.system"))
    with pytest.raises(CheckpointError, match=r"refuses to load 'os\.system' as decoder"):
        describe_checkpoint(bundle)


class Malice:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.fixture
def bundle(tmp_path) -> Path:
    pipeline, config = trained()
    save_bundle(tmp_path / "run" / "bundle", pipeline, config, "# Card é\n")
    return tmp_path / "run" / "bundle"


def write_ckpt(path: Path, **changes) -> Path:
    pipeline, config = trained()
    state = {f"model.{key}": value for key, value in pipeline.model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "recognizer": describe(pipeline, config)} | changes, path)
    return path


@torch.no_grad()
def outputs(pipeline: Pipeline):
    waveforms = 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    return pipeline.model(waveforms, torch.tensor([16000, 9000]))[0]


def edit(bundle: Path, change) -> None:
    config = yaml.safe_load((bundle / "config.yaml").read_text())
    change(config)
    (bundle / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_round_trip(tmp_path, tokenizer):
    pipeline, config = trained(tokenizer)
    save_bundle(tmp_path / "bundle", pipeline, config, "# Card é\n")
    files = {p.relative_to(tmp_path / "bundle").as_posix() for p in (tmp_path / "bundle").rglob("*") if p.is_file()}
    assert files >= {"config.yaml", "model.safetensors", "README.md", "tokenizer/tokenizer.json"}
    assert (tmp_path / "bundle" / "README.md").read_text("utf-8") == "# Card é\n"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    loaded = load_pipeline(tmp_path / "bundle")
    log_probs = outputs(pipeline)
    assert torch.equal(outputs(loaded), log_probs)
    emissions = Emissions(log_probs.numpy(), np.full(2, log_probs.shape[1]), 0.04)
    assert loaded.decoder(emissions) == pipeline.decoder(emissions)
    assert loaded.tokenizer.labels == pipeline.tokenizer.labels
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.text("it's") == pipeline.text("it's") == "IT'S"


def test_self_conditioning_travels_with_it(tmp_path):
    config = CONFIG | {"encoder": CONFIG["encoder"] | {"layers": 2}, "self_conditioning": [1]}
    pipeline = build(config, texts=TEXTS)
    pipeline.model.eval()
    save_bundle(tmp_path / "bundle", pipeline, pipeline_config(config), "")
    assert torch.equal(outputs(load_pipeline(tmp_path / "bundle")), outputs(pipeline))
    assert "self_conditioning" not in pipeline_config(config | {"self_conditioning": []})


def test_every_way_to_name_it(bundle):
    run = bundle.parent
    expected = outputs(load_pipeline(bundle))
    write_ckpt(run / "checkpoints" / "last.ckpt")
    assert torch.equal(outputs(load_pipeline(run)), expected)
    assert torch.equal(outputs(load_pipeline(str(run / "checkpoints" / "last.ckpt"))), expected)
    shutil.rmtree(bundle)
    assert torch.equal(outputs(load_pipeline(run)), expected)  # a run that was not finished


def test_unfinished_run_gives_its_best_checkpoint(tmp_path):
    """The best by what it monitors, not the latest of the k best."""
    best = ["best-001-000010-wer0.3000-cer0.0900-loss7.0000", "best-004-000040-wer0.1250-cer0.1000-loss9.0000"]
    for bias, name in enumerate([*best, "last"]):
        state = {f"model.{k}": v.clone() for k, v in trained()[0].model.state_dict().items()}
        state["model.head.bias"].fill_(bias)
        write_ckpt(tmp_path / "checkpoints" / f"{name}.ckpt", state_dict=state)
    assert load_pipeline(tmp_path).model.head.bias[0] == 1
    for monitor, bias in [("val_wer", 1), ("val_cer", 0), ("val_loss", 0), ("null", 1)]:
        (tmp_path / "config.yaml").write_text(f"monitor: {monitor}\n")
        assert load_pipeline(tmp_path).model.head.bias[0] == bias
    # without the loss, as runs named them once, and with Lightning's number of a version
    for name, other in zip(best, ["best-001-000010-wer0.0900-v1", "best-004-000040-wer0.1250"], strict=True):
        (tmp_path / "checkpoints" / f"{name}.ckpt").rename(tmp_path / "checkpoints" / f"{other}.ckpt")
    for monitor in ("val_wer", "val_loss"):
        (tmp_path / "config.yaml").write_text(f"monitor: {monitor}\n")
        assert load_pipeline(tmp_path).model.head.bias[0] == 0
    for path in (tmp_path / "checkpoints").glob("best*"):
        path.unlink()
    assert load_pipeline(tmp_path).model.head.bias[0] == 2


def test_is_replaced_whole(bundle):
    pipeline, config = trained()
    pipeline.model.head.bias.data.fill_(7)
    (bundle / "old").touch()
    save_bundle(bundle, pipeline, config, "")
    assert load_pipeline(bundle).model.head.bias[0] == 7
    assert not (bundle / "old").exists() and [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_failure_keeps_the_old_one(bundle, monkeypatch):
    pipeline, config = trained()
    monkeypatch.setattr(pipeline.tokenizer, "save", lambda folder: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError):
        save_bundle(bundle, pipeline, config, "new")
    assert (bundle / "README.md").read_text("utf-8") == "# Card é\n"
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_other_decoder(bundle):
    edit(bundle, lambda c: c["decoder"].update(beam=5))  # an option that this version's decoder lacks
    with pytest.raises(ConfigError, match="decoder: has no option 'beam'"):
        load_pipeline(bundle)
    assert load_pipeline(bundle, {"_target_": "asr.decoders.Greedy"}).decoder.tokenizer.labels[0] == "<blank>"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "target", ["os.system", "asr.bundle.load_pipeline", "asr.text.normalizer.Normalizer", None, ["os.system"]]
)
def test_refuses_what_no_installed_config_names(bundle, stage, target):
    edit(bundle, lambda c: c[stage].update(_target_=target))
    with pytest.raises(CheckpointError, match=rf"refuses to load .* as {stage}"):
        load_pipeline(bundle)


def test_refuses_a_component_of_another_stage(bundle):
    edit(bundle, lambda c: c["decoder"].update(_target_="asr.encoders.Blstm"))
    with pytest.raises(CheckpointError, match=r"refuses to load 'asr\.encoders\.Blstm' as decoder"):
        load_pipeline(bundle)


@pytest.mark.parametrize(
    "option",
    [
        {"layers": {"_target_": "os.system", "command": "touch owned"}},
        {"layers": [1, [{"_target_": "os.system"}]]},
        {"layers": {"deep": {"_target_": "os.system"}}},
        {"_partial_": True},
        {"_args_": ["touch owned"]},
        {"_recursive_": False},
        {"dropout": "${oc.env:HOME}"},
    ],
)
def test_refuses_nested_targets(bundle, option, monkeypatch):
    monkeypatch.chdir(bundle)
    edit(bundle, lambda c: c["encoder"].update(option))
    with pytest.raises(CheckpointError, match=r"refuses a config with a '_target_' or .* inside 'encoder'"):
        load_pipeline(bundle)
    assert not Path("owned").exists()


def test_refuses_yaml_that_runs_code(bundle):
    (bundle / "config.yaml").write_text('text: !!python/object/apply:os.system ["touch owned"]\n')
    with pytest.raises(CheckpointError, match=r"config\.yaml: not valid YAML"):
        load_pipeline(bundle)


@pytest.mark.parametrize("stage", [*STAGES, "normalization"])
def test_missing_stage(bundle, stage):
    edit(bundle, lambda c: c.pop(stage))
    with pytest.raises(CheckpointError, match=rf"config lacks .*{stage}"):
        load_pipeline(bundle)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(10 * [f'*{below}'])}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("content", [BOMB, "text: &a [*a]\n", "text: " + 60 * "[" + 60 * "]" + "\n"])
def test_refuses_yaml_that_never_ends(bundle, content):
    (bundle / "config.yaml").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.yaml: refuses a config of so many values"):
        load_pipeline(bundle)


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("encoder", {"width": 10**9}),
        ("encoder", {"width": 10**6, "layers": 100}),
        ("encoder", {"subsampling": ["conv"]}),
        ("encoder", {"channels": -1}),
        ("featurizer", {"bands": 10**13}),
        ("featurizer", {"hop_ms": 1e300}),
        ("text", {"keep": 3}),
    ],
)
def test_refuses_options_that_make_no_recognizer(bundle, stage, options):
    """Whatever they are, and before the memory is asked for."""
    edit(bundle, lambda c: c[stage].update(options))
    with pytest.raises((CheckpointError, ConfigError)):
        load_pipeline(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("head.bias"),
        lambda weights: weights.update({"head.weight": weights["head.weight"].T.contiguous()}),
        lambda weights: weights.update({"extra": weights["head.bias"].clone()}),
        lambda weights: weights.pop("encoder.layers.0.weight_hh_l0"),
        lambda weights: weights.update({"encoder.norms.0.weight": weights["encoder.norms.0.weight"][:3].clone()}),
    ],
)
def test_refuses_missing_extra_and_misshapen_tensors(bundle, change):
    weights = load_file(bundle / "model.safetensors")
    change(weights)
    save_file(weights, bundle / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"its weights do not fit its own config\. .*(head|extra|encoder\.)"):
        load_pipeline(bundle)


def test_refuses_a_pickle_as_weights(bundle, monkeypatch):
    monkeypatch.chdir(bundle)
    torch.save({"head.weight": Malice()}, bundle / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load_pipeline(bundle)
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("bundle:../../words.txt", "lies outside the bundle"),
        ("bundle:/etc/passwd", "lies outside the bundle"),
        ("/etc/passwd", "lies outside the bundle"),
        ("bundle:lm/none.txt", "is missing"),
        ("bundle:lm/evil.npy", "evil"),
        ("bundle:lm/evil", "evil"),
    ],
)
@pytest.mark.parametrize("key", ["lexicon", "lm", "hotwords"])
def test_refuses_files_outside_and_pickles_inside(bundle, monkeypatch, key, value, says):
    monkeypatch.chdir(bundle)
    (bundle / "lm" / "evil").mkdir(parents=True)
    for path in ("lm/evil.npy", "lm/evil/words.npy", "lm/evil/first.npy"):
        np.save(bundle / path, np.array([Malice()], object), allow_pickle=True)
    header = {"kind": "ngram", "format": 1, "order": 1, "counts": [3], "unit": "words", "metadata": {}}
    (bundle / "lm" / "evil" / "lm.yaml").write_text(yaml.safe_dump(header))
    edit(bundle, lambda c: c.update(decoder={"_target_": "asr.decoders.Beam", key: value}))
    with pytest.raises(AsrError, match=says):
        load_pipeline(bundle)
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "tokenizer.json").write_text("[]"),
        lambda folder: (folder / "tokenizer.json").write_text('{"labels": ["<blank>", {"a": 1}]}'),
        lambda folder: (folder / "tokenizer.json").write_text("[" * 100_000),
        lambda folder: (folder / "sentencepiece.model").write_bytes(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR."),
        lambda folder: (folder / "sentencepiece.model").write_bytes(b"\n\xff\xff\xff\xff\x7f"),
    ],
)
def test_refuses_tokenizers_that_are_none(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    pipeline, config = trained("sentencepiece")
    save_bundle(tmp_path / "bundle", pipeline, config, "")
    change(tmp_path / "bundle" / "tokenizer")
    with pytest.raises(CheckpointError, match=r"(tokenizer\.json|sentencepiece\.model): damaged"):
        load_pipeline(tmp_path / "bundle")
    assert not Path("owned").exists()


@pytest.mark.parametrize("content", ["", "- a\n", "text: [\n", "\xff"])
def test_damaged_config(bundle, content):
    (bundle / "config.yaml").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=str(bundle)):
        load_pipeline(bundle)


def test_newer_format(bundle):
    edit(bundle, lambda c: c.update(format=99))
    with pytest.raises(CheckpointError, match="written by a newer version of the toolkit"):
        load_pipeline(bundle)


@pytest.mark.parametrize("size", [0, 4, 200, -100])
def test_damaged_weights(bundle, size):
    path = bundle / "model.safetensors"
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load_pipeline(bundle)


@pytest.mark.parametrize("option", [{"width": 9}, {"layers": 2}, {"layers": 1, "layer_norm": False}])
def test_weights_of_another_shape(bundle, option):
    edit(bundle, lambda c: c["encoder"].update(option))
    with pytest.raises(CheckpointError, match="its weights do not fit its own config"):
        load_pipeline(bundle)


def test_missing_files(bundle):
    (bundle / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file"):
        load_pipeline(bundle)
    (bundle / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load_pipeline(bundle.parent)


def test_not_there(bundle):
    with pytest.raises(CheckpointError, match=r"bundel: no recognizer there.*Did you mean .*bundle\?"):
        load_pipeline(bundle.parent / "bundel")
    with pytest.raises(CheckpointError, match="no recognizer there"):
        load_pipeline(bundle / "tokenizer")
    with pytest.raises(CheckpointError, match="no recognizer there"):
        load_pipeline("/nowhere/at/all")
    (bundle.parent / "new" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no bundle and no checkpoint yet"):
        load_pipeline(bundle.parent / "new")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"callbacks": Malice()}, "cannot be read as a checkpoint"),
        ({"recognizer": None}, "describes no recognizer"),
        ({"recognizer": {}}, "describes no recognizer|damaged|lacks"),
        ({"state_dict": {}}, "its weights do not fit"),
    ],
)
def test_ckpt_that_is_refused(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    path = write_ckpt(tmp_path / "a.ckpt", **changes)
    with pytest.raises(CheckpointError, match=rf"a\.ckpt: .*({message})"):
        load_pipeline(path)
    assert not Path("owned").exists()


def test_ckpt_that_is_damaged(tmp_path):
    path = write_ckpt(tmp_path / "a.ckpt")
    for size in (path.stat().st_size // 2, 10, 0):
        os.truncate(path, size)
        with pytest.raises(CheckpointError, match=r"a\.ckpt: cannot be read as a checkpoint"):
            load_pipeline(path)


def test_ckpt_cannot_write_outside_its_folder(tmp_path):
    path = write_ckpt(tmp_path / "a.ckpt")
    state = torch.load(path, weights_only=True)
    state["recognizer"]["tokenizer"][f"../../{tmp_path.name}/escaped"] = b"x"
    state["recognizer"]["tokenizer"][str(tmp_path / "escaped")] = b"x"
    torch.save(state, path)
    load_pipeline(path)
    assert not (tmp_path / "escaped").exists()
