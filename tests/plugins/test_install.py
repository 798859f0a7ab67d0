"""A third-party package after its installation: listed, trained with, loaded; and what is wrong with others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from asr import plugins
from asr.cli import main, run
from asr.tokenizers import Characters

ROOT = Path(__file__).parents[2]


def test_trains_a_step_through_the_script_and_loads(
    installed: Path, noise_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        "+experiment=tdnn_small", f"data.train={noise_manifest}", "data.validation_speakers=0.5", f"out={tmp_path}/run",
        "encoder.width=12", "trainer=cpu", "max_steps=1", "data.workers=0", "threads=1", "logger=[csv]",
    ]  # fmt: skip
    paths = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
    assert (tmp_path / "run" / "bundle" / "model.safetensors").is_file()

    from asr.errors import CheckpointError
    from asr.recognizer import load

    audio = noise_manifest.parent / "0.flac"
    plugins.providers.cache_clear()
    with pytest.raises(CheckpointError, match=r"asr_example.*install that package"):
        load(tmp_path / "run")
    monkeypatch.syspath_prepend(str(installed))
    plugins.providers.cache_clear()
    recognizer = load(tmp_path / "run", device="cpu")
    assert type(recognizer.model.encoder).__name__ == "Tdnn"
    assert recognizer.model.encoder.dim == 12
    assert recognizer.transcribe(audio).duration == pytest.approx(1.0)
    plugins.providers.cache_clear()


def test_listed_with_where_it_comes_from(
    example: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "argv", ["asr", "plugins"])
    main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["encoder", "tdnn", "example", "asr_example.encoder.Tdnn"] in rows
    assert ["encoder", "blstm", "asr", "asr.encoders.Blstm"] in rows
    assert ["decoder", "eager", "example", "asr_example.decoder.EagerGreedy"] in rows
    assert ["experiment", "tdnn_small", "example"] in rows
    assert not any(row[:1] == ["problem:"] for row in rows)


def test_help_lists_it(example: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("train", ["encoder=tdnn", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    [encoders] = [line for line in out.splitlines() if line.startswith("encoder: ")]
    assert {"blstm", "gru", "tdnn"} <= set(encoders.removeprefix("encoder: ").split(", "))
    assert "tdnn_small" in out
    assert "asr_example.encoder.Tdnn" in out


def test_a_mistyped_name_is_offered_the_plugins(example: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        run("train", ["encoder=tdn"])
    assert "Did you mean tdnn" in capsys.readouterr().err


def test_its_configs_hold_the_constructors_arguments(example: Path) -> None:
    found = [c for c in plugins.components(plugins.COMPONENT_GROUPS) if c.provider == "example"]
    assert {c.group for c in found} == {"encoder", "featurizer", "text", "tokenizer", "decoder"}
    given = {"encoder": {"input_dim": 80}, "decoder": {"tokenizer": Characters(list("ab"))}}
    for component in found:
        config = yaml.safe_load(component.path.read_text())
        plugins.instantiate(config, component.group, **given.get(component.group, {}))


def test_a_name_that_is_taken_is_reported(install, capsys: pytest.CaptureFixture) -> None:
    install("greedy_shadow", {"encoder/blstm.yaml": "_target_: evil.Blstm\n", "experiment/an4.yaml": "name: x\n"})
    wanted = "plugin 'greedy_shadow': encoder=blstm is shadowed by 'asr', which has the same name"
    assert wanted in plugins.problems()
    assert any("experiment=an4 is shadowed" in problem for problem in plugins.problems())
    assert "evil.Blstm" not in plugins.allowed_targets("encoder")
    with pytest.raises(SystemExit):
        run("train", ["encoder=none"])
    assert f"warning: {wanted}" in capsys.readouterr().err
    run("plugins", [])
    assert f"problem: {wanted}" in capsys.readouterr().out


def test_a_config_may_derive_from_another(install) -> None:
    install("derived", {"encoder/derived.yaml": "defaults: [blstm]\nwidth: 3\n"})
    assert plugins.problems() == []
    assert "" not in plugins.allowed_targets("encoder")


@pytest.mark.parametrize(
    ("configs", "package", "message"),
    [
        ({}, True, "the package 'odd' has no folder 'conf'"),
        ({}, False, "the package 'odd' that its entry point names cannot be imported"),
        ({"encoder/odd.yaml": "width: 3\n"}, True, "encoder=odd is without '_target_'"),
        ({"encoder/odd.yaml": "_target_: [\n"}, True, "encoder=odd is not valid YAML"),
        (
            {"augment/odd.yaml": "_target_: a.B\n"},
            True,
            "without the first line '# @package augment.odd'",
        ),
    ],
)
def test_a_broken_plugin_is_reported_and_does_no_harm(
    install, configs: dict[str, str], package: bool, message: str, capsys: pytest.CaptureFixture
) -> None:
    install("odd", configs, package)
    assert message in "\n".join(plugins.problems())
    run("plugins", [])
    assert "blstm" in capsys.readouterr().out


def test_a_class_that_cannot_be_loaded(install, capsys: pytest.CaptureFixture, noise_manifest: Path) -> None:
    install("lost", {"encoder/lost.yaml": "_target_: lost.nowhere.Encoder\n"})
    with pytest.raises(SystemExit) as stopped:
        run("train", ["encoder=lost", f"data.train={noise_manifest}", f"out={noise_manifest.parent}/run", "threads=1"])
    assert stopped.value.code == 1
    assert "encoder: cannot load 'lost.nowhere.Encoder'" in capsys.readouterr().err
