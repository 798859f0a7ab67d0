"""An exported file is loaded as a bundle is, needs nothing of this toolkit, and is not trusted."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import asr
from asr import cli
from asr.bundle import install_decoder, load_pipeline, pipeline_config, save_bundle
from asr.errors import CheckpointError, ConfigError
from asr.export import export, export_model
from asr.pipeline import build
from tests.test_export_model import make, speech
from tests.test_recognizer import CONFIG, pipeline

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def test_a_difference_to_torch_is_refused_and_leaves_no_file(bundle, tmp_path, monkeypatch):
    for name in ("ABSOLUTE", "RELATIVE"):
        monkeypatch.setattr(f"asr.export.{name}", 0.0)
    with pytest.raises(ConfigError, match="log-probabilities differ from torch's by"):
        export(bundle, tmp_path / "out" / "a.onnx")
    assert not (tmp_path / "out").exists()


# --- the file


@pytest.fixture
def bundle(tmp_path) -> Path:
    save_bundle(tmp_path / "bundle", pipeline(), pipeline_config(CONFIG), "---\nlicense: mit\n---\n# Card é\n")
    return tmp_path / "bundle"


@pytest.fixture
def audio(tmp_path) -> list[str]:
    paths = []
    for k, samples in enumerate(speech(1.0, 0.7, 2.0)):
        paths.append(str(tmp_path / f"{k}.wav"))
        soundfile.write(paths[-1], np.convolve(samples, np.ones(1 + 3 * k), "same") / 10, (16000, 16000, 44100)[k])
    return paths


TOKENIZERS = {
    "characters": {"_target_": "asr.tokenizers.Characters"},
    "words": {"_target_": "asr.tokenizers.Words"},
    "sentencepiece": {"_target_": "asr.tokenizers.SentencePiece", "vocab_size": 13},
}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_is_loaded_as_a_bundle_is(tokenizer, audio, tmp_path):
    torch.manual_seed(3)
    penalized = {"_target_": "asr.decoders.Greedy", "blank_penalty": 50.0}
    config = CONFIG | {"tokenizer": TOKENIZERS[tokenizer], "decoder": penalized}
    built = build(config, ["one two three four", "two one four"] * 3)
    with torch.no_grad():
        built.model.head.weight.mul_(20)
        built.model.head.bias[0] += 50
    save_bundle(tmp_path / "bundle", built, pipeline_config(config), "# Card")
    path = export(tmp_path / "bundle", tmp_path / "new" / "a.onnx")
    assert [p.name for p in path.parent.iterdir()] == ["a.onnx"]
    ours, theirs = asr.load(path, threads=1), asr.load(tmp_path / "bundle", device="cpu")
    assert (ours.sample_rate, ours.model.frame_seconds) == (16000, theirs.model.frame_seconds)
    assert ours.pipeline.tokenizer.labels == theirs.pipeline.tokenizer.labels
    assert ours.pipeline.text("It's") == theirs.pipeline.text("It's")
    for one, other in zip(ours.transcribe(audio), theirs.transcribe(audio), strict=True):
        assert (one.text, one.duration) == (other.text, other.duration) and one.text
        assert [(w.text, w.start, w.end) for w in one.words] == [(w.text, w.start, w.end) for w in other.words]
    with pytest.raises(ConfigError, match="is there already"):
        export(tmp_path / "bundle", path)
    assert [t.text for t in theirs.transcribe(audio)] != [
        t.text for t in asr.load(tmp_path / "bundle", device="cpu", decoder="greedy").transcribe(audio)
    ]
    assert example(path, audio[:2]) == [f"{t.audio}\t{t.text}" for t in theirs.transcribe(audio[:2])]


def code() -> str:
    return next(
        b for b in re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL) if "get_modelmeta" in b
    )


def example(
    path: Path, audio: list[str], python: str = sys.executable, block: str = "torch asr hydra numba"
) -> list[str]:
    """What the README's script prints, run where some packages cannot be imported."""
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({block.split()!r}))\n"
    command = [python, "-c", blocked + code(), str(path), *audio]
    return subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout.splitlines()


def test_the_example_is_short():
    assert len(code().splitlines()) <= 40


@pytest.mark.slow
def test_the_example_in_a_fresh_environment(bundle, audio, tmp_path):
    uv = shutil.which("uv")
    if not uv:
        pytest.skip("needs uv")
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(tmp_path / "venv")], check=True)
    subprocess.run(
        [uv, "pip", "install", "-q", "--python", str(python), "onnxruntime", "numpy", "soundfile"], check=True
    )
    for quantize in ("none", "int8"):
        path = export(bundle, tmp_path / f"{quantize}.onnx", quantize)
        found = asr.load(path).transcribe(audio[:2])
        assert example(path, audio[:2], str(python), "") == [f"{t.audio}\t{t.text}" for t in found]


def test_metadata(bundle, tmp_path):
    path = export(bundle, tmp_path / "a.onnx", "int8")
    about = ort.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    assert about["sample_rate"] == "16000" and float(about["frame_seconds"]) == 0.04 and about["stride"] == "640"
    assert json.loads(about["labels"]) == ["<blank>", *" abcdefgh"] and about["separator"] == ""
    assert about["precision"] == "int8" and about["card"].endswith("# Card é\n")


def test_a_language_model_stays_behind(bundle, tmp_path, capsys):
    words = tmp_path / "words.txt"
    words.write_text("a\nb\n")
    install_decoder(bundle, {"_target_": "asr.decoders.Beam", "lexicon": str(words)})
    cli.run("export", [f"checkpoint={bundle}", f"out={tmp_path / 'a.onnx'}"])
    assert "the exported one decodes greedily" in capsys.readouterr().out
    assert type(asr.load(tmp_path / "a.onnx").pipeline.decoder).__name__ == "Greedy"


def test_transcribing_loads_neither_torch_nor_numba(bundle, audio, tmp_path):
    path = export(bundle, tmp_path / "a.onnx")
    code = (
        "import sys, asr\n"
        f"print(asr.load({str(path)!r}).transcribe({audio!r})[2].text)\n"
        "from asr.cli import run\n"
        f"run('transcribe', ['checkpoint={path}', 'engine=onnx', 'threads=1', {audio[2]!r}])\n"
        "print({'torch', 'torchaudio', 'lightning', 'numba', 'onnx', 'jiwer', 'scipy'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    text = asr.load(bundle, device="cpu").transcribe(audio[2]).text
    assert done.stdout.splitlines() == [text, f"{audio[2]}\t{text}", "set()"]


def test_command(bundle, audio, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.run("export", ["checkpoint=bundle", "out=a=b, (1).onnx", "quantize=int8"])
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("exported: a=b, (1).onnx")
    cli.run("info", ["a=b, (1).onnx"])
    printed = capsys.readouterr().out
    assert "8-bit integers" in printed and "licence     mit" in printed
    for options, says in (
        ({"out": "a.bin"}, "must end in .onnx"),
        ({"quantize": "int4"}, "must be none or int8"),
        ({"checkpoint": "a=b, (1).onnx", "out": "c.onnx"}, "is an exported file"),
    ):
        words = {"checkpoint": "bundle", "out": "d.onnx"} | options
        with pytest.raises(SystemExit):
            cli.run("export", [f"{key}={value}" for key, value in words.items()])
        assert says in capsys.readouterr().err


# --- engines


def test_engines_agree(bundle, audio):
    expected = asr.load(bundle, device="cpu")
    waveforms = speech(1.0, 0.4)
    torch_says = expected.emissions(waveforms).numpy()
    for engine, tolerance in (("torch", 0.0), ("auto", 0.0), ("onnx", 1e-4), ("bf16", 1.0), ("int8", 1.0)):
        found = asr.load(bundle, device="cpu", engine=engine, threads=torch.get_num_threads())
        says = found.emissions(waveforms).numpy()
        np.testing.assert_array_equal(says.lengths, torch_says.lengths)
        difference = np.abs(says.log_probs[0] - torch_says.log_probs[0]).max()
        assert difference <= tolerance and (difference > 1e-3) == (engine in ("bf16", "int8"))


def test_a_recognizer_goes_to_other_processes(bundle, audio, tmp_path):
    recognizer = asr.load(export(bundle, tmp_path / "a.onnx"), threads=1)
    assert pickle.loads(pickle.dumps(recognizer)).transcribe(audio) == recognizer.transcribe(audio)


def test_engines_that_do_not_fit(bundle, tmp_path):
    path = export(bundle, tmp_path / "a.onnx")
    with pytest.raises(ConfigError, match=r"engine=tensorrt: there is no such engine\. There are: auto, bf16, int8"):
        asr.load(bundle, engine="tensorrt")
    for engine in ("torch", "bf16"):
        with pytest.raises(ConfigError, match="is an exported file: only ONNX Runtime runs it"):
            asr.load(path, engine=engine)
    with pytest.raises(ConfigError, match=r"holds float32 weights\. Export it again with quantize=int8"):
        asr.load(path, engine="int8")
    for checkpoint, engine in ((bundle, "onnx"), (path, "auto")):
        with pytest.raises(ConfigError, match="ONNX Runtime runs on the CPU"):
            asr.load(checkpoint, "cuda", engine=engine)


def test_decoders_of_the_device_get_tensors(bundle, audio, tmp_path):
    recognizer = asr.load(export(bundle, tmp_path / "a.onnx"))
    greedy, seen = recognizer.pipeline.decoder, []

    def spy(emissions):
        seen.append(type(emissions.log_probs))
        return greedy(emissions.numpy())

    spy.device = True
    recognizer.pipeline.decoder = spy
    recognizer.transcribe(audio[0])
    assert seen == [torch.Tensor]


# --- files of strangers


def rewrite(path: Path, change) -> None:
    """Change the graph or the metadata of an exported file."""
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    metadata["recognizer"] = json.loads(metadata["recognizer"])
    change(model, metadata)
    metadata["recognizer"] = json.dumps(metadata["recognizer"])
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    path.write_bytes(model.SerializeToString())


def external(location: str):
    def change(model, metadata):
        tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    return change


def option(stage: str, **options):
    return lambda model, metadata: metadata["recognizer"]["config"][stage].update(options)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (external("secret.bin"), "ONNX Runtime cannot load it"),
        (external("../secret.bin"), "ONNX Runtime cannot load it"),
        (external("/etc/passwd"), "ONNX Runtime cannot load it"),
        (option("decoder", _target_="os.system"), "refuses to load 'os.system' as decoder"),
        (option("tokenizer", _target_="asr.encoders.Blstm"), r"refuses to load 'asr\.encoders\.Blstm' as tokenizer"),
        (option("text", case={"_target_": "os.system"}), "refuses a config with a '_target_'"),
        (option("decoder", lexicon="secret.bin"), "lies outside the bundle"),
        (option("text", case=[0] * 200_000), "refuses a config of so many values"),
        (lambda model, metadata: metadata.update(labels='["<blank>"]'), "has 1 labels, but its tokenizer 10"),
        (lambda model, metadata: metadata.update(sample_rate="fast"), "not a recognizer that 'asr export' wrote"),
        (lambda model, metadata: metadata.update(sample_rate=10**12), "make no sense"),
        (lambda model, metadata: metadata["recognizer"].pop("tokenizer"), "not a recognizer that 'asr export' wrote"),
        (lambda model, metadata: metadata["recognizer"]["tokenizer"].clear(), r"tokenizer\.json: no such file"),
        (lambda model, metadata: model.graph.input[0].__setattr__("name", "x"), "ONNX Runtime cannot load it"),
    ],
)
def test_hostile_files_are_refused(bundle, tmp_path, monkeypatch, change, says):
    monkeypatch.chdir(tmp_path)
    path = export(bundle, tmp_path / "sub" / "a.onnx")
    for place in (tmp_path / "secret.bin", tmp_path / "sub" / "secret.bin"):
        place.write_bytes(bytes(1 << 22))
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=rf"a\.onnx: .*{says}|{says}"):
        asr.load(path)


def test_a_model_of_other_labels_is_refused(bundle, audio, tmp_path):
    path = export(bundle, tmp_path / "a.onnx")
    other = onnx.load_model_from_string(export_model(make(labels=7)).content)

    def change(model, metadata):
        model.graph.CopyFrom(other.graph)

    rewrite(path, change)
    with pytest.raises(CheckpointError, match=r"its model and its labels do not belong together"):
        asr.load(path).transcribe(audio[0])


def test_the_tokenizer_cannot_leave_its_folder(bundle, tmp_path):
    path = export(bundle, tmp_path / "a.onnx")
    escapes = {f"../../{tmp_path.name}/escaped": "eA==", str(tmp_path / "escaped"): "eA=="}
    rewrite(path, lambda model, metadata: metadata["recognizer"]["tokenizer"].update(escapes))
    asr.load(path)
    assert not (tmp_path / "escaped").exists()


def test_damaged_files_are_refused(bundle, tmp_path):
    content = export(bundle, tmp_path / "a.onnx").read_bytes()
    path, random = tmp_path / "b.onnx", np.random.default_rng(0)
    for size in (0, 1, 10, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"b\.onnx: "):
            asr.load(path)
    (tmp_path / "c.onnx").write_bytes(b"PK\x03\x04 no ONNX at all")
    with pytest.raises(CheckpointError, match=r"c\.onnx: "):
        asr.load(tmp_path / "c.onnx")
    metadata = content.rindex(b"sample_rate") - 200
    for _ in range(300):
        mutated = bytearray(content)
        for place in random.integers(metadata, len(content), 3):
            mutated[place] = random.integers(256)
        path.write_bytes(mutated)
        with contextlib.suppress(CheckpointError, ConfigError):
            load_pipeline(path)
