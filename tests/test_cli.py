"""The command line: what it offers, and that what a person does wrong is answered plainly."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import pytest
import torch

from asr import plugins
from asr.bundle import pipeline_config, save_bundle
from asr.cli import main, run
from asr.errors import AudioError, ConfigError
from asr.overrides import split_arguments
from tests.test_recognizer import CONFIG, pipeline

pytestmark = pytest.mark.usefixtures("clean")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run a command that must fail, and return what it says."""

    def call(command: str, *arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            run(command, [*arguments])
        captured = capsys.readouterr()
        assert stopped.value.code == 1
        assert captured.err.startswith("error: ")
        assert "Traceback" not in captured.err
        return captured.err

    return call


# --- commands, experiments, components, options


@pytest.mark.parametrize(("arguments", "code"), [([], 1), (["trian"], 1), (["--help"], 0), (["-h"], 0)])
def test_the_list_of_commands(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["asr", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    assert stopped.value.code == code
    assert "usage: asr COMMAND" in (captured.err if code else captured.out)
    if arguments == ["trian"]:
        assert "error: there is no command 'trian'. Did you mean train" in captured.err


def test_help_lists_the_groups(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("train", ["--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    for line in (
        "encoder: blstm, conformer, ",
        "experiment: aishell, an4, ",
        "objective: cr_ctc, ctc",
        "tokenizer: characters, sentencepiece, words",
    ):
        assert line in out


@pytest.mark.parametrize(
    ("command", "usage", "choices"),
    [
        ("train", "usage: asr train +experiment=NAME", "optimizer: adamw, sgd"),
        ("evaluate", "usage: asr evaluate checkpoint=RUN manifest=FILE.jsonl", "decoder: to use instead"),
        (
            "transcribe",
            "usage: asr transcribe checkpoint=RUN [key=value …] FILE_OR_FOLDER …",
            "decoder: to use instead",
        ),
        ("average", "usage: asr average checkpoints=[A.ckpt,B.ckpt] out=BUNDLE", "decoder: to score with"),
        ("label_prior", "usage: asr label_prior checkpoint=RUN manifest=TRAIN.jsonl", "out: ???"),
        ("train_lm", "usage: asr train_lm train=FILE out=DIR", "lm: which kind"),
        ("evaluate_lm", "usage: asr evaluate_lm model=DIR_OR_ARPA test=FILE", "text: how the text is normalized"),
        ("export", "usage: asr export checkpoint=RUN out=FILE.onnx", "quantize: none"),
        ("prepare", "usage: asr prepare corpus=NAME corpus.root=DIR out=DIR", "corpus: which one"),
        ("benchmark", "usage: asr benchmark training|memory|transcription", "encoder: blstm, conformer, "),
    ],
)
def test_help_of_a_command(command: str, usage: str, choices: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(command, ["--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    assert usage in out
    assert choices in out
    assert "threads: null" in out or command in ("prepare", "export")
    assert ("optimizer" in out) == (command in ("train", "benchmark"))
    assert "powered by Hydra" not in out


def test_plugins(capsys: pytest.CaptureFixture, refused: Callable[..., str]) -> None:
    run("plugins", ["--help"])
    assert capsys.readouterr().out.startswith("usage: asr plugins\n")
    assert "'xyz': plugins takes no options" in refused("plugins", "xyz")
    run("plugins", [])
    assert "asr.encoders.Blstm" in capsys.readouterr().out


def test_info(capsys: pytest.CaptureFixture, refused: Callable[..., str]) -> None:
    run("info", ["--help"])
    assert capsys.readouterr().out.startswith("usage: asr info CHECKPOINT\n")
    for words in ([], ["a", "b"]):
        assert "Which recognizer? Name one." in refused("info", *words)
    for word in ("nowhere", "checkpoint=nowhere"):
        assert "checkpoint=nowhere: no recognizer there" in refused("info", word)


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = plugins.Component("encoder", "[bold]a:smile:[/x]", "[red]", None, Path("x"))
    monkeypatch.setattr(plugins, "components", lambda _groups: [odd])
    monkeypatch.setattr(plugins, "problems", lambda: ["plugin '[/a]'"])
    run("plugins", [])
    out = capsys.readouterr().out
    assert "[bold]a:smile:[/x]" in out
    assert "[red]" in out
    assert "problem: plugin '[/a]'" in out


@pytest.mark.parametrize(
    ("command", "word", "says"),
    [
        ("train", "+experiment=dmo", ["experiment=dmo", "Did you mean demo?"]),
        ("train", "experiment=demo", ["+experiment=", " an4, "]),
        ("train", "encoder=blstn", ["encoder=blstn", "Did you mean blstm"]),
        ("train", "augment=[sped]", ["augment=sped", "Did you mean speed"]),
        ("train", "objective=cr_tc", ["objective=cr_tc", "Did you mean cr_ctc"]),
        ("train", "trainer=tpu", ["trainer=tpu", "Did you mean gpu or cpu?"]),
        ("prepare", "corpus=ann4", ["corpus=ann4", "Did you mean an4?"]),
        ("transcribe", "decoder=gredy", ["decoder=gredy", "Did you mean greedy?"]),
        ("train", "encoder=null", ["encoder=null: a choice is a name", "blstm"]),
        ("train", "augment=3", ["augment=3: a choice is a name", "speed", "write augment=[]."]),
        ("train", "decoder@lm_decoder=null", ["a choice is a name", "beam", "write lm_decoder=null."]),
        ("train", "encodr=blstm", ["encodr: there is no such option", "encoder"]),
        ("train", "encoder.widht=3", ["encoder.widht: there is no such option", "Did you mean width?"]),
        ("train", "trainer.max_time=3", ["trainer.max_time", "write +trainer.max_time=…"]),
        ("train", "trainer.max_epochs=3", ["trainer.max_epochs", "Say epochs=…"]),
        ("train", "epochs=abc", ["epochs=abc: must be of type int"]),
        ("train", "epochs=0", ["epochs=0: must be 1 or more"]),
        ("train", "seed=-1", ["seed=-1: must be 0 or more"]),
        ("train", "threads=abc", ["threads=abc: must be of type int or null, found str"]),
        ("train", "threads=-1", ["threads=-1: must be 1 or more"]),
        ("train", "max_steps=1.5", ["max_steps=1.5: must be of type int or null, found float"]),
        ("train", "max_minutes=1:30", ["max_minutes=1:30: must be of type float or null, found str"]),
        ("train", "data.channel=abc", ["data.channel=abc: must be of type int or null"]),
        ("train", "data.workers=abc", ["data.workers=abc: must be of type int or null"]),
        ("benchmark", "rounds=0", ["rounds=0: must be 1 or more"]),
        ("train", "optimizer.amsgrad=true", ["optimizer.amsgrad", "write +optimizer.amsgrad=…"]),
        ("train", "corpus.root=x", ["corpus.root", "add corpus=NAME", "an4"]),
        ("train", "语音=3", ["语音"]),
        ("train", "demo", ["'demo' is neither an option"]),
        ("transcribe", "--format", ["--format: there is no such flag", "format=…"]),
        ("evaluate", "manifest=x", ["checkpoint: has to be given: checkpoint=…"]),
        ("evaluate", "checkpoint=x", ["manifest: has to be given: manifest=…"]),
        ("transcribe", "a.wav", ["checkpoint: has to be given: checkpoint=…"]),
        ("transcribe", "checkpoint=x", ["Which audio?"]),
        ("export", "checkpoint=x", ["out: has to be given: out=…"]),
        ("export", "out=x", ["checkpoint: has to be given: checkpoint=…"]),
        ("transcribe", "engin=onnx", ["engin: there is no such option", "Did you mean engine"]),
        ("prepare", "corpus=an4", ["out: has to be given: out=…"]),
        ("average", "checkpoints=[a,b]", ["out: has to be given: out=…"]),
        ("prepare", "out=x", ["corpus: which one?", "an4"]),
    ],
)
def test_what_does_not_exist_or_is_missing(
    command: str, word: str, says: list[str], refused: Callable[..., str], tmp_path: Path
) -> None:
    message = refused(command, word, *(["data.train=x"] if word.startswith("data.") else []))
    for words in says:
        assert words in message
    assert not any(tmp_path.iterdir())


def test_options_of_components_that_may_be_null(refused: Callable[..., str]) -> None:
    message = refused("prepare", "corpus=folder", "corpus.root=.", "out=x", "corpus.max_duration=abc")
    assert "corpus.max_duration=abc: must be of type float or null" in message
    for options in ("checkpoint=x channel=one manifest=y", "checkpoint=x channel=-1 manifest=y"):
        assert "channel=" in refused("evaluate", *options.split())
    with pytest.raises(ConfigError, match=r"featurizer\.high_hz=abc: must be of type float or null"):
        plugins.instantiate({"_target_": "asr.featurizers.LogMel", "high_hz": "abc"}, "featurizer")
    with pytest.raises(ConfigError, match=r"encoder\.channels=2: must be of type \[int, …\], found int"):
        plugins.instantiate({"_target_": "asr.encoders.ConvBlstm", "channels": 2}, "encoder", input_dim=80)


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [3], [None, True, 3.0, "3"]),
        ("float", [3, 3.5], [None, True, "3"]),
        ("int | None", [3, None], [True, 3.0, "3"]),
        (int | None, [3, None], [False, "3"]),
        (Optional[float], [3, 0.5, None], [False, "x"]),  # noqa: UP045
        ("Optional[bool]", [True, None], [1, "x"]),
        ("int | str", [3, "x"], [None, 0.5, True]),
        ("str | Path | None", [3, None, "x"], []),  # no scalar types only: not looked at
        ("Sequence[int]", [[], [3], (3, 4)], [3, None, "34", ["x"], [None]]),
        (Sequence[Sequence[int]], [[[3, 3], [1]]], [[3, 3], [["x"]]]),
        ("list[int | None] | None", [None, [3, None]], [3, ["x"]]),
        ("str | Sequence[str] | None", ["abc", ["a"], None], [[1], 1]),
        ("Sequence[str]", [["a"]], ["abc"]),
        ("tuple[int, float]", [[3, 0.5]], [[3], [0.5, 3], [1, 2, 3]]),
        ("tuple[str, ...]", [[], ["a", "b"]], ["ab", [1]]),
        ("Sequence[Path]", [3, None, "x"], []),
        (Any, [3, None, "x"], []),
    ],
)
def test_types_of_options(annotation: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        plugins.check_type(value, annotation, "key")
    for value in bad:
        with pytest.raises(ConfigError, match=re.escape(f"key={value}: must be of type")):
            plugins.check_type(value, annotation, "key")


def test_a_component_that_lacks_an_option_of_the_chosen_kind(refused: Callable[..., str]) -> None:
    assert "encoder.projection" in refused("train", "encoder=gru", "encoder.projection=3")
    assert "Did you mean root?" in refused("train", "corpus=an4", "corpus.rot=x")


def test_multirun_on_several_devices(refused: Callable[..., str]) -> None:
    assert "-m with several devices" in refused("train", "-m", "trainer.devices=2", "seed=1,2")


def test_a_sweep_has_a_folder_for_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from asr import commands

    folders: list[str] = []
    monkeypatch.setattr(commands, "train", lambda config: folders.append(config["callbacks"]["last"]["dirpath"]))
    run("train", ["seed=1,2", "-m", "name=sweep"])
    assert [Path(folder).parts[-2] for folder in folders] == ["0", "1"]
    assert Path(folders[0]).parts[:2] == ("runs", "sweep")
    folders.clear()
    run("train", ["-m", "seed=1,2", "out=sweeps/seed=${seed}"])
    assert folders == ["sweeps/seed=1/checkpoints", "sweeps/seed=2/checkpoints"]


def test_own_experiments(tmp_path: Path, capsys: pytest.CaptureFixture, refused: Callable[..., str]) -> None:
    (tmp_path / "my conf" / "experiment").mkdir(parents=True)
    mine = "# @package _global_\nname: mine\nencoder: {width: 7}\n"
    (tmp_path / "my conf" / "experiment" / "mine.yaml").write_text(mine)
    run("train", ["--config-dir", "my conf", "+experiment=mine", "--cfg", "job"])
    out = capsys.readouterr().out
    assert "name: mine" in out
    assert "width: 7" in out
    assert "nowhere" in refused("train", "--config-dir", "nowhere", "+experiment=mine")
    assert "Did you mean mine" in refused("train", "--config-dir", "my conf", "+experiment=mime")
    (tmp_path / "my conf" / "decoder").mkdir()
    (tmp_path / "my conf" / "decoder" / "tuned.yaml").write_text("_target_: asr.decoders.Greedy\nblank_penalty: 1\n")
    chosen = ("--config-dir", "my conf", "decoder=tuned", "decoder.blank_penaltyy=1")
    assert "Did you mean blank_penalty?" in refused("evaluate", "checkpoint=x", "manifest=x", *chosen)


def test_own_configs_with_names_that_are_taken(tmp_path: Path, refused: Callable[..., str]) -> None:
    own, there = tmp_path / "mine" / "decoder" / "greedy.yaml", plugins.config_names("decoder")["greedy"]
    own.parent.mkdir(parents=True)
    own.write_text(there.read_text() + "# changed\n")
    message = refused("train", "--config-dir", "mine", "--cfg", "job")
    assert str(Path("mine", "decoder", "greedy.yaml")) in message
    assert "Rename" in message
    own.write_text(there.read_text())  # a copy of all configs is no harm
    run("train", ["--config-dir", "mine", "--cfg", "job"])
    for name in ("train.yaml", "hydra/launcher/slurm.yaml"):
        changed = tmp_path / "mine" / name
        changed.parent.mkdir(parents=True, exist_ok=True)
        changed.write_text("epochs: 5\n")
        assert name in refused("train", "--config-dir=mine", "--cfg", "job")
        changed.unlink()


def test_flags_that_exclude_each_other(refused: Callable[..., str]) -> None:
    assert "--multirun" in refused("train", "-m", "seed=1,2", "--cfg", "job")


def test_any_file_that_is_there_is_a_file(tmp_path: Path) -> None:
    for name in ("~a.wav", "-b.wav", "c=d.wav"):
        (tmp_path / name).touch()
    assert split_arguments(["~a.wav", "-b.wav", "c=d.wav", "e=f"], True) == (["~a.wav", "-b.wav", "c=d.wav"], ["e=f"])
    assert split_arguments(["~a.wav"], False) == ([], ["~a.wav"])


@pytest.mark.parametrize("arguments", ["--help", "info BUNDLE", "train --help"])
def test_what_reads_the_output_may_have_enough(arguments: str, tmp_path: Path) -> None:
    save_bundle(tmp_path / "BUNDLE", pipeline(), pipeline_config(CONFIG), "card")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "asr", *arguments.split()]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_what_an_experiment_says_to_replaced_components_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    configs: list[dict] = []
    monkeypatch.setattr("asr.commands.train", configs.append)
    run("train", ["+experiment=demo", "tokenizer=characters", "augment=[speed]", "encoder=lstm", "encoder.layers=4"])
    [config] = configs
    assert set(config["tokenizer"]) == {"_target_", "labels", "unknown"}
    assert list(config["augment"]) == ["speed"] and config["augment"]["speed"]["factors"] == [0.85, 0.95, 1.05]
    assert config["encoder"]["width"] == 160, "the experiment's, as it knows it"
    out = capsys.readouterr().out
    assert "left out    tokenizer.vocab_size, which experiment=demo sets for its own tokenizer" in out
    assert "kept        augment.speed.factors=[0.85, 0.95, 1.05], as experiment=demo says" in out
    assert "kept        encoder.width=160, encoder.dropout=0.15, as experiment=demo says" in out
    run("train", ["+experiment=demo", "augment=[]", "tokenizer=characters", "tokenizer.vocab_size=3"])
    assert configs[1]["augment"] == {} and configs[1]["tokenizer"]["vocab_size"] == 3, "a person's word is not touched"
    learners = ["+experiment=speechocean762", "corpus.root=x"]
    run("train", [*learners, "decoder@lm_decoder=greedy"])
    assert configs[2]["lm_decoder"]["blank_penalty"] == 2 and "lm_weight" not in configs[2]["lm_decoder"]
    assert "left out    lm_decoder.lm_weight" in capsys.readouterr().out
    run("train", [*learners, "lm_decoder=null"])
    assert configs[3]["lm_decoder"] is None


# --- checkpoints


def test_there_is_no_checkpoint(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    message = refused("evaluate", "checkpoint=runs/demmo", "manifest=m.jsonl")
    assert "checkpoint=runs/demmo: no recognizer there" in message
    assert "Did you mean runs/demo?" in message
    assert "no recognizer there" in refused("transcribe", "checkpoint=runs/demo", "a.wav")


def test_a_checkpoint_that_is_none(refused: Callable[..., str], tmp_path: Path) -> None:

    (tmp_path / "epoch=3-step=9.ckpt").write_bytes(b"garbage")
    message = refused("transcribe", "checkpoint=epoch=3-step=9.ckpt", "a.wav")
    assert "epoch=3-step=9.ckpt: cannot be read as a checkpoint" in message
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert "other.ckpt: not a checkpoint of this toolkit" in refused("transcribe", "checkpoint=other.ckpt", "a.wav")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "model.safetensors").write_bytes(b"garbage")
    (bundle / "config.yaml").write_text("a: [")
    assert "config.yaml: not valid YAML" in refused("transcribe", "checkpoint=bundle", "a.wav")
    (bundle / "config.yaml").write_text("encoder: 3\n")
    assert "its config lacks one of the stages" in refused("transcribe", "checkpoint=bundle", "a.wav")


def test_folders_without_audio(
    refused: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    from asr import recognizer
    from asr.types import Transcript

    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    # the audio is looked at ahead of the model
    assert "No audio files in empty (looked for .3gp," in refused("transcribe", "checkpoint=nowhere", "empty")

    class Fake:
        def transcribe_each(self, utterances, progress):
            for index, utterance in enumerate(utterances):
                audio = utterance.audio_filepath
                yield index, AudioError("b.FLAC: bad") if "b." in audio else Transcript(audio, "hello", (), 1.0, ())

    monkeypatch.setattr(recognizer, "load", lambda *_: Fake())
    (tmp_path / "talks" / "deep").mkdir(parents=True)
    for name in ("deep/c.w64", "a.wav", "b.FLAC", "a.txt"):
        (tmp_path / "talks" / name).touch()
    with pytest.raises(SystemExit) as stopped:
        run("transcribe", ["checkpoint=x", "empty", "talks", "one.xyz"])
    captured = capsys.readouterr()
    assert stopped.value.code == 1
    assert captured.out == "talks/a.wav\thello\ntalks/deep/c.w64\thello\none.xyz\thello\n"
    assert "error: empty: the folder holds no audio files (looked for .3gp" in captured.err
    assert "error: b.FLAC: bad" in captured.err
    assert "error: 2 of 5 files and folders could not be transcribed." in captured.err
    run("transcribe", ["checkpoint=x", "talks/deep"])


def test_options_of_transcribe(refused: Callable[..., str]) -> None:
    assert "format=xml: no such format" in refused("transcribe", "checkpoint=x", "format=xml", "a.wav")
