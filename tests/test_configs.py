"""Every shipped config composes, every component builds, and the wheel holds every folder."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from hydra.utils import get_object
from omegaconf import OmegaConf

from asr import plugins
from asr.cli import _register_resolvers
from asr.errors import ConfigError
from asr.pipeline import build
from asr.training.language_models import final_decoder
from asr.training.module import build_augmentations
from asr.training.run import _fit

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
COMMANDS = sorted(path.stem for path in CONF.glob("*.yaml"))
CONFIGS = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.glob("*/*.yaml"))
EXPERIMENTS = [name.split("/")[1] for name in CONFIGS if name.startswith("experiment/")]
STAGES = [name for name in CONFIGS if name.split("/")[0] in ("text", "tokenizer", "featurizer", "encoder", "decoder")]
MILLIONS = {"librispeech_100": 24, "librispeech_960": 66, "aishell": 28, "commonvoice": 14}
"""Parameters of the experiments that need a GPU; the others have 10 M at the most."""
LISTS = ("augment", "callbacks", "logger")
"""Groups of which several configs are chosen at once, each under a name of its own."""
SMALL = {
    "encoder": ("layers=1", "width=8", "channels=2"),
    "encoder/conv_blstm": ("layers=1", "width=8", "channels=[2,2]"),
    "encoder/conv_blstm_ds2": ("layers=1", "width=8", "channels=[2,2]"),
    "encoder/vgg_blstm": ("layers=1", "width=8", "channels=[2,2,2,2]"),
    "encoder/vgg_blstm_fine": ("layers=1", "width=8", "channels=[2,2,2,2]"),
    "encoder/crdnn": ("layers=1", "width=8", "channels=[2,2]"),
    "encoder/pyramid_blstm": ("layers=3", "width=8"),
    "tokenizer/sentencepiece": ("vocab_size=16",),
    "decoder/rescored": (f"lm={ROOT / 'tests' / 'lm' / 'tiny.arpa'}",),
}
NOT_ARGUMENTS = {"_target_", "_partial_", "_recursive_", "_convert_"}


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    plugins.register()
    _register_resolvers()
    with initialize_config_module("asr.conf", version_base="1.3"):
        yield


def composed(command: str, *overrides: str) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(compose(command, overrides=[*overrides]), resolve=True)
    return config


def test_there_are_configs() -> None:
    assert {"train", "evaluate", "transcribe", "prepare"} <= set(COMMANDS)
    assert {"demo", "an4"} <= set(EXPERIMENTS)
    assert {name.split("/")[0] for name in STAGES} == {"text", "tokenizer", "featurizer", "encoder", "decoder"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command: str) -> None:
    assert composed(command)


@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith(("experiment/", "ablation/"))])
def test_each_config_holds_arguments_of_its_class(name: str) -> None:
    group, leaf = name.split("/")
    command = {"lm": "train_lm", "vad": "transcribe"}.get(group, "train")
    config = composed(command, f"{group}=[{leaf}]" if group in LISTS else f"{group}={leaf}")[group]
    for part in config.values() if group in LISTS else [config]:
        target = part["_target_"]
        if target.startswith(("asr.", "torch.", "lightning.")):  # others are optional packages
            parameters = inspect.signature(get_object(target)).parameters
            assert set(part) - NOT_ARGUMENTS <= set(parameters), f"{name}: {target} has no such argument"


@pytest.mark.parametrize("name", STAGES)
def test_stages_build_a_pipeline(name: str) -> None:
    group, leaf = name.split("/")
    if leaf == "flashlight":
        pytest.importorskip("flashlight.lib.text", reason="flashlight-text is not installed: it has no Python 3.13")
    encoder = name if group == "encoder" else "encoder"
    small = [f"encoder.{option}" for option in SMALL.get(encoder, SMALL["encoder"])]
    small += [f"{group}.{option}" for option in SMALL.get(name, ()) if group != "encoder"]
    pipeline = build(composed("train", f"{group}={leaf}", *small), texts=["one two three", "four, five", "six"])
    assert len(pipeline.tokenizer) > 1
    assert pipeline.model.head.out_features == len(pipeline.tokenizer)
    assert callable(pipeline.decoder)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("augment/")])
def test_augmentations_build(name: str) -> None:
    assert len(build_augmentations(composed("train", f"augment=[{name.split('/')[1]}]")["augment"])) == 1


def test_augmentations_follow_the_featurizer() -> None:
    names = ("vtlp", "noise", "reverb", "telephone", "codec")
    chosen = f"augment=[{','.join(names)}]"
    augment = composed("train", chosen, "featurizer.sample_rate=8000", "featurizer.bands=40")["augment"]
    assert {augment[name]["sample_rate"] for name in names} == {8000} and augment["vtlp"]["bands"] == 40
    with pytest.raises(ConfigError, match="featurizer=log_mel"):
        build_augmentations(composed("train", "augment=[vtlp]", "featurizer=spectrogram")["augment"])


def test_speed_and_tempo_multiply() -> None:
    """An utterance that both make shorter must still have frames for its labels."""
    config = composed("train", "augment=[speed,tempo]", "encoder.layers=1", "encoder.width=8")
    pipeline = build(config, texts=["one two three"])
    expected = pipeline.model.output_lengths(torch.tensor([int(160000 / 1.21)]))
    assert _fit(pipeline, config).frames(np.array([10.0])).tolist() == expected.tolist()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("corpus/")])
def test_corpora_compose_for_prepare(name: str) -> None:
    config = composed("prepare", f"corpus={name.split('/')[1]}", "out=x")
    assert config["corpus"]["_target_"] in plugins.allowed_targets("corpus")
    assert hasattr(get_object(config["corpus"]["_target_"]), "prepare")


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("schedule/")])
def test_schedules_run_to_their_last_step(name: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    config = composed("train", f"schedule={name.split('/')[1]}")["schedule"]
    schedule = plugins.instantiate(config, "schedule", optimizer=optimizer, steps=20)
    rates = []
    for _ in range(20):
        optimizer.step()
        schedule.step(*([1.0] if name.endswith("plateau") else []))
        rates.append(optimizer.param_groups[0]["lr"])
    assert all(0 <= rate <= 0.5 + 1e-9 for rate in rates)
    assert rates[-1] < 0.5 or name.endswith("constant")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_compose_and_build(name: str, tmp_path: Path) -> None:
    config = composed("train", f"+experiment={name}")
    assert config["name"] == name
    labels = config["tokenizer"].pop("vocab_size", 4231 if name == "aishell" else 30)  # what a training would find
    config["tokenizer"] = {"_target_": "asr.tokenizers.Words", "labels": [f"w{k}" for k in range(1, labels)]}
    pipeline = build(config)
    final_decoder(config, pipeline, [" ".join(pipeline.tokenizer.labels[1:]), "w2"], tmp_path)
    parameters = sum(parameter.numel() for parameter in pipeline.model.parameters())
    assert parameters < 10e6 if name not in MILLIONS else round(parameters / 1e6) == MILLIONS[name]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_only_override(name: str) -> None:
    config = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text("utf-8"))
    for default in config.get("defaults", ()):
        group = "" if default == "_self_" else next(iter(default))
        assert default == "_self_" or group.startswith(("override /", "/corpus@corpus.parts.")), default
    base = composed("train")
    for key in set(config) - {"defaults"}:
        is_group = (CONF / key).is_dir()  # one of which train.yaml chooses nothing leaves no key
        assert key in base or is_group, f"{name}: train.yaml has no '{key}'"


def test_a_decoder_may_replace_the_bundles_own() -> None:
    for command in ("evaluate", "transcribe"):
        assert composed(command, "decoder=greedy")["decoder"]["_target_"] == "asr.decoders.Greedy"
        assert composed(command)["decoder"] is None


def test_the_wheel_holds_every_folder() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "asr").rglob("*.py")}
    assert set(setuptools["packages"]) == {folder.replace("/", ".") for folder in folders} | {"asr.conf"}
    assert {folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()} == set()
    assert (CONF / "__init__.py").is_file()  # without it Hydra finds no config module
    assert setuptools["package-data"]["asr.conf"] == ["**/*.yaml"]
