"""Trainings that leave a part of a recipe out; the trainings themselves are replaced."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from asr.benchmarks import ablation
from asr.evaluation.files import write_results
from asr.evaluation.result import make_results
from asr.types import Utterance
from tests.benchmarks.test_benchmarks import benchmark


def test_ablation(tmp_path, monkeypatch):
    trained = []

    def train(command, **_):
        """A recipe that gets one word of four wrong, with another seed two, and without SpecAugment all of them."""
        options = dict(option.partition("=")[::2] for option in command)
        trained.append(command)
        fold = int(options["data.validation_fold"])
        text = "" if "~augment.specaugment" in command else "yes no" if fold and options["seed"] == "3" else "yes"
        speech = [Utterance("a.wav", "yes no", id=f"{fold}{k}", speaker=f"s{fold}{k}") for k in range(3)]
        write_results(Path(options["out"], "evaluation", "validation"), make_results(speech, [text] * 3), {})
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(ablation.subprocess, "run", train)
    for _ in range(2):  # the second time, nothing is trained
        options = f"trained={tmp_path / 'runs'}", "options=corpus.root=x", "ablation.seeds=[3,4]"
        found = benchmark("ablation", tmp_path, *options)["results"]
        assert len(trained) == 4 * len(found)
    assert {tuple(command[1:4]) for command in trained} == {("-m", "asr", "train")}
    assert all({"+experiment=an4", "corpus.root=x"} < set(command) for command in trained)
    assert sum("seed=3" in command for command in trained) == len(trained) / 2
    assert found["the whole recipe"]["value"] == 37.5 and found["SpecAugment"]["value"] == 100
    assert "+62.50 points" in found["SpecAugment"]["note"] and "no effect" not in found["SpecAugment"]["note"]
    assert found["weight dropout"]["note"].endswith("over 6 speakers: no effect shown")


def test_an_ablation_says_which_training_failed_and_what_it_wants(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablation.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    with pytest.raises(SystemExit):
        benchmark("ablation", tmp_path, f"trained={tmp_path / 'runs'}")
    assert "the-whole-recipe-seed0-fold0: the training has failed; see" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark("ablation", tmp_path)
    assert "trained=DIR" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark("ablation", tmp_path, f"trained={tmp_path / 'runs'}", "options=seed=3")
    assert "ablation.seeds=" in capsys.readouterr().err
