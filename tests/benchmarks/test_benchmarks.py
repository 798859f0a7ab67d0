"""Both benchmarks run from the command line, and what they report agrees with itself. No timing is asserted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from asr import cli

SMALL = ("encoder.layers=2", "encoder.width=8", "encoder.channels=2", "trainer.accelerator=cpu", "device=cpu")


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def benchmark(name: str, folder: Path, *options: str) -> dict:
    out = folder / "benchmark"
    cli.run("benchmark", [name, f"out={out}", f"json={folder / 'found.json'}", "threads=1", *SMALL, *options])
    assert not out.exists()
    return json.loads((folder / "found.json").read_text("utf-8"))


def test_training(tmp_path, capsys):
    options = ("blocks=2", "steps=2", "utterances=16", "data.batch_seconds=10", "data.workers=1", "data.buckets=4")
    found = benchmark("training", tmp_path, *options)
    results = found["results"]
    value = {name: measured["value"] for name, measured in results.items()}
    assert all(number > 0 for number in value.values())
    assert value["waiting"] < 100
    assert results["ratio"]["target"] == 1.25 and results["waiting"]["target"] == 3
    assert results["step"]["unit"] == "ms"
    assert found["setting"]["threads"] == 1 and found["setting"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert "waiting for data" in printed and "our step / packed" in printed


def test_transcription_reads_the_files_of_a_manifest(tmp_path, capsys):
    from asr.benchmarks.noise import write_noise

    manifest = write_noise(tmp_path / "noise", 3)
    found = benchmark("transcription", tmp_path, f"manifest={manifest}", "rounds=1")
    value = {name: measured["value"] for name, measured in found["results"].items()}
    for name in ("single", "batch"):
        assert value[name] > 0 and value[f"{name}_model"] > 0
        assert value[f"{name}_ratio"] == pytest.approx(value[name] / value[f"{name}_model"])
        assert value[f"{name}_speed"] == pytest.approx(1 / value[name])
    assert found["setting"]["files"].startswith("3, ")
    assert "real-time factor" in capsys.readouterr().out


def test_an_unknown_benchmark_or_a_used_folder_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.run("benchmark", ["trainig"])
    assert "Did you mean training" in capsys.readouterr().err
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(SystemExit):
        cli.run("benchmark", ["training", f"out={tmp_path}"])
    assert "does not exist" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["mine.txt"]
