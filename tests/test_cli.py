"""The command line: awkward file names arrive as they are, and what a person does wrong is answered plainly."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from asr import plugins
from asr.cli import _register_resolvers, main, quote, run, split_arguments
from asr.errors import ConfigError

NAMES = [
    "语音/a=b, (1).wav", "epoch=3-step=9.ckpt", "a,b.ckpt", "#1 & co.jsonl", "(a)", "[1].wav", "[a", "{a}", " a b ",
    "it's", 'say "so"', "'a' and \"b\"", "a\\b", "tail\\", "a\\'b", "\\\\", "~/a", "C:\\Users\\x", "a:b", "100%", "@x",
    "=", "a;b|c*?<>$!", "123", "1e3", "true", "None", "ünï", "…/–", "a\tb", "--x", "",
]  # fmt: skip


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A folder of its own, no run id of another test, and Hydra as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ASR_RUN_ID", raising=False)
    yield
    os.environ.pop("ASR_RUN_ID", None)
    GlobalHydra.instance().clear()


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


# --- words to Hydra's overrides


@pytest.fixture
def value_of() -> Iterator[Callable[[str, str], Any]]:
    plugins.register()
    _register_resolvers()
    with initialize_config_module("asr.conf", version_base="1.3"):

        def get(command: str, word: str) -> Any:
            node: Any = compose(command, overrides=[quote(word)])
            for part in word.split("=")[0].lstrip("+").split("."):
                node = node[part]
            return node

        yield get


def test_paths_arrive_literally(value_of: Callable[[str, str], Any]) -> None:
    for name in NAMES:
        assert value_of("evaluate", f"checkpoint={name}") == name
    for name in NAMES[:8]:
        assert value_of("train", f"data.train={name}") == name
    for name in ("语音/a=b, (1)", "epoch=3", "#1 & co", "[1].wav", "it's"):
        assert value_of("train", f"name={name}") == name


def test_what_is_not_a_path_keeps_its_type(value_of: Callable[[str, str], Any]) -> None:
    assert value_of("train", "seed=3") == 3
    assert value_of("train", "encoder.bidirectional=false") is False
    assert value_of("train", "optimizer.lr=1e-3") == 1e-3
    assert value_of("train", "data.train=null") is None
    assert value_of("train", "+optimizer.betas=[0.8,0.9]") == [0.8, 0.9]
    assert value_of("train", "name='a b'") == "a b"
    assert value_of("train", "out=runs/${name}") == "runs/train"


def test_lists_of_paths(value_of: Callable[[str, str], Any]) -> None:
    assert value_of("train", "data.train=[a.jsonl,b/c.jsonl]") == ["a.jsonl", "b/c.jsonl"]
    assert value_of("train", "data.train=[语音/a=b.jsonl, (c).jsonl]") == ["语音/a=b.jsonl", "(c).jsonl"]
    assert value_of("train", "data.train=['a, b.jsonl']") == ["a, b.jsonl"]


def test_files_are_told_from_options(tmp_path: Path) -> None:
    (tmp_path / "x=1.wav").touch()
    words = ["checkpoint=runs/a=b", "语音/a=b, (1).wav", "x=1.wav", "talks/", "format=json", "--config-dir", "my conf"]
    files, options = split_arguments([*words, "~decoder"], takes_files=True)
    assert files == ["语音/a=b, (1).wav", "x=1.wav", "talks/"]
    assert options == ["--config-dir", "my conf", "checkpoint='runs/a=b'", "format=json", "~decoder"]


def test_flags_keep_their_values() -> None:
    words = ["--cfg", "job", "--info", "config", "--info", "seed=1", "-cd", "a", "~augment", "-m", "+experiment=demo"]
    flags = ["--cfg", "job", "--info", "config", "--info", "all", "-cd", "a", "-m"]
    assert split_arguments(words, takes_files=False) == ([], [*flags, "seed=1", "~augment", "+experiment=demo"])


def test_a_stray_word() -> None:
    with pytest.raises(ConfigError, match=r"'demo' is neither an option \(key=value\) nor a flag"):
        split_arguments(["demo"], takes_files=False)


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
    for line in ("encoder: blstm, gru", "experiment: an4, demo", "tokenizer: characters, sentencepiece, words"):
        assert line in out


@pytest.mark.parametrize(
    ("command", "word", "says"),
    [
        ("train", "+experiment=dmo", ["experiment=dmo", "Did you mean demo?"]),
        ("train", "experiment=demo", ["+experiment=", "an4, demo"]),
        ("train", "encoder=blstn", ["encoder=blstn", "Did you mean blstm?"]),
        ("train", "augment=[sped]", ["augment=sped", "Did you mean speed"]),
        ("train", "trainer=tpu", ["trainer=tpu", "Did you mean gpu or cpu?"]),
        ("prepare", "corpus=ann4", ["corpus=ann4", "Did you mean an4?"]),
        ("transcribe", "decoder=gredy", ["decoder=gredy", "Did you mean greedy?"]),
        ("train", "encodr=blstm", ["encodr: there is no such option", "encoder"]),
        ("train", "encoder.widht=3", ["encoder.widht: there is no such option", "Did you mean width?"]),
        ("train", "trainer.max_time=3", ["trainer.max_time", "write +trainer.max_time=…"]),
        ("train", "trainer.max_epochs=3", ["trainer.max_epochs", "Say epochs=…"]),
        ("train", "epochs=abc", ["epochs=abc: must be of type int"]),
        ("train", "optimizer.amsgrad=true", ["optimizer.amsgrad", "write +optimizer.amsgrad=…"]),
        ("train", "corpus.root=x", ["corpus.root", "add corpus=NAME", "an4"]),
        ("train", "语音=3", ["语音"]),
        ("train", "demo", ["'demo' is neither an option"]),
        ("evaluate", "manifest=x", ["checkpoint: has to be given: checkpoint=…"]),
        ("evaluate", "checkpoint=x", ["manifest: has to be given: manifest=…"]),
        ("transcribe", "a.wav", ["checkpoint: has to be given: checkpoint=…"]),
        ("transcribe", "checkpoint=x", ["Which audio?"]),
        ("prepare", "corpus=an4", ["out: has to be given: out=…"]),
        ("prepare", "out=x", ["corpus: which one?", "an4"]),
    ],
)
def test_what_does_not_exist_or_is_missing(
    command: str, word: str, says: list[str], refused: Callable[..., str], tmp_path: Path
) -> None:
    message = refused(command, word)
    for words in says:
        assert words in message
    assert not any(tmp_path.iterdir())


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


# --- checkpoints


def test_there_is_no_checkpoint(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    message = refused("evaluate", "checkpoint=runs/demmo", "manifest=m.jsonl")
    assert "checkpoint=runs/demmo: no recognizer there" in message
    assert "Did you mean runs/demo?" in message
    assert "no recognizer there" in refused("transcribe", "checkpoint=runs/demo", "a.wav")


def test_a_checkpoint_that_is_none(refused: Callable[..., str], tmp_path: Path) -> None:
    import torch

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
    assert "model.safetensors: cannot be read" in refused("transcribe", "checkpoint=bundle", "a.wav")


def test_options_of_transcribe(refused: Callable[..., str]) -> None:
    assert "format=xml: no such format" in refused("transcribe", "checkpoint=x", "format=xml", "a.wav")
