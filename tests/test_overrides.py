"""Words of the command line become Hydra's overrides: awkward file names arrive as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from asr import plugins
from asr.cli import _register_resolvers
from asr.errors import ConfigError
from asr.overrides import quote, split_arguments

NAMES = [
    "语音/a=b, (1).wav", "epoch=3-step=9.ckpt", "a,b.ckpt", "#1 & co.jsonl", "(a)", "[1].wav", "[a", "{a}", " a b ",
    "it's", 'say "so"', "'a' and \"b\"", "a\\b", "tail\\", "a\\'b", "\\\\", "C:\\Users\\x", "a:b", "100%", "@x",
    "=", "a;b|c*?<>$!", "123", "1e3", "true", "None", "ünï", "…/–", "a\tb", "--x", "",
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("clean")


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
    for key in ("lm", "label_lm"):
        for name in NAMES[:8]:
            config = compose("train", overrides=["decoder@lm_decoder=beam", quote(f"lm_decoder.{key}={name}")])
            assert config.lm_decoder[key] == name
        for word in (f"lm_decoder.{key}=3", f"++lm_decoder.{key}=3"):  # an order
            assert compose("train", overrides=["decoder@lm_decoder=beam", quote(word)]).lm_decoder[key] == 3
    part = "+corpus@corpus.parts.mine=folder"
    for name in NAMES[:8]:
        config = compose("train", overrides=["corpus=joint", part, quote(f"corpus.parts.mine.root={name}")])
        assert config.corpus.parts.mine.root == name
    for name in ("语音/a=b, (1)", "epoch=3", "#1 & co", "[1].wav", "it's"):
        assert value_of("train", f"name={name}") == name


def test_the_home_folder(value_of: Callable[[str, str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert value_of("evaluate", "checkpoint=~/runs/a") == "/home/me/runs/a"
    assert value_of("evaluate", "checkpoint=~runs") == "~runs"
    noise = compose("train", overrides=["augment=[noise]", quote("augment.noise.path=~/a, b")])
    assert noise.augment.noise.path == "/home/me/a, b"


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
    assert value_of("average", "checkpoints=[epoch=3-step=9.ckpt,b]") == ["epoch=3-step=9.ckpt", "b"]
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
