"""Data, folders and checkpoints that cannot be used: the message names file or key and the way out."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.cli import run

TINY = (
    "encoder.layers=1", "encoder.width=8", "encoder.channels=2", "trainer=cpu", "max_steps=1", "threads=1",
    "data.workers=0", "data.validation_speakers=0", "augment=[]", "callbacks=[]", "logger=[]",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("clean")


@pytest.fixture
def train(noise_manifest: Path) -> Callable[..., None]:
    """One step of a tiny model on noise; `data.train` and any other option may be given anew."""

    def call(*options: str) -> None:
        given = {option.split("=")[0] for option in options}
        defaults = [*TINY, f"data.train={noise_manifest}", "out=run"]
        run("train", [*(option for option in defaults if option.split("=")[0] not in given), *options])

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """What a call that must fail says."""

    def call(action: Callable[..., None], *arguments) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            action(*arguments)
        error = capsys.readouterr().err
        assert stopped.value.code == 1
        assert "error: " in error
        assert "Traceback" not in error
        return error

    return call


def rewrite(manifest: Path, line: int, **changes) -> None:
    rows = [json.loads(row) for row in manifest.read_text("utf-8").splitlines()]
    rows[line].update(changes)
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


# --- manifests


def test_nothing_to_train_on(train, refused) -> None:
    error = refused(train, "data.train=null")
    assert "data.train=FILE.jsonl" in error
    assert "corpus=NAME" in error


def test_manifest_missing_empty_or_broken(train, refused, tmp_path: Path) -> None:
    assert "no.jsonl: no such manifest" in refused(train, "data.train=no.jsonl", "out=a")
    (tmp_path / "empty.jsonl").touch()
    assert "empty.jsonl: the manifest is empty" in refused(train, "data.train=empty.jsonl", "out=b")
    (tmp_path / "broken.jsonl").write_text('{"audio_filepath": "0.flac", "text": "a"}\n{"audio_filepath": \n')
    assert "broken.jsonl, line 2: not JSON" in refused(train, "data.train=broken.jsonl", "out=c")
    (tmp_path / "keyless.jsonl").write_text('{"audio": "0.flac", "text": "a"}\n')
    assert "keyless.jsonl, line 1: the key 'audio_filepath'" in refused(train, "data.train=keyless.jsonl", "out=d")
    (tmp_path / "lang.jsonl").write_text('{"audio_filepath": "0.flac", "text": "a", "lang": ["en"]}\n')
    assert "lang.jsonl, line 1: 'lang' must be a string" in refused(train, "data.train=lang.jsonl", "out=f")
    (tmp_path / "twice.jsonl").write_text('{"audio_filepath": "0.flac", "text": "a"}\n' * 2)
    assert "twice.jsonl, lines 1 and 2: the same id" in refused(train, "data.train=twice.jsonl", "out=e")


def test_validation_manifest_missing(train, refused) -> None:
    assert "no.jsonl: no such manifest" in refused(train, "data.validation=no.jsonl")


def test_the_only_speaker_cannot_be_held_out(train, refused, noise_manifest: Path) -> None:
    for line in range(4):
        rewrite(noise_manifest, line, speaker="a")
    error = refused(train, "data.validation_speakers=0.5")
    assert "data.validation=FILE" in error
    assert "data.validation_speakers=0" in error


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("encoder.layers=two", "encoder.layers=two: must be of type int"),
        ("encoder.dropout=30", "encoder.dropout=30: must be 0 or more, and below 1"),
        ("encoder.weight_dropout=1.0", "encoder.weight_dropout=1.0: must be"),
        ("featurizer.bands=0", "featurizer.bands=0: must be 1 or more"),
        ("+encoder.widht=3", "encoder: has no option 'widht'. Did you mean width?"),
        ("normalization=local", "normalization=local: must be one of global, utterance"),
        ("trainer.precision=12", "trainer: Precision 12 is invalid"),
        ("trainer=gpu", "gpu"),
        ("logger=[mlflow]", "logger.mlflow: "),
        ("+trainer.max_epochs=3", "say epochs=… instead"),
        ("+trainer.limit_train_batches=3", "say max_steps=… instead"),
        ("+trainer.logger=false", "trainer.logger: choose it by logger=[…]"),
        ("+trainer.callbacks=null", "trainer.callbacks: choose them by callbacks=[…]"),
        ("seed=5000000000", "seed=5000000000: must be 0 or more, and below 4294967296"),
        ("schedule.start=0", "schedule.start=0 must be above 0"),
        ("+trainer.overfit_batches=1", "data.train=FEW.jsonl"),
        ("trainer.precision=bf16-true", "take auto, 32-true, bf16-mixed or 16-mixed"),
    ],
)
def test_options_that_a_component_refuses(train, refused, option: str, says: str) -> None:
    import importlib.util

    import torch

    if (option == "trainer=gpu" and torch.cuda.is_available()) or (
        option == "logger=[mlflow]" and importlib.util.find_spec("mlflow")
    ):
        pytest.skip("it is there")
    assert says in refused(train, option)


@pytest.mark.parametrize(
    ("group", "content", "option", "says"),
    [
        ("experiment", "epochs: 3", "+experiment=own", "# @package _global_'"),
        (
            "experiment",
            "# @package _global_\nencodr: {width: 3}",
            "+experiment=own",
            "encodr: there is no such option. Did",
        ),
        ("augment", "_target_: asr.augment.Noise", "augment=[own]", "# @package augment.NAME'"),
        ("callbacks", "_target_: asr.training.ema.Ema", "callbacks=[own]", "# @package callbacks.NAME'"),
    ],
)
def test_a_config_of_ones_own_that_has_no_effect(train, refused, tmp_path, group, content, option, says) -> None:
    (tmp_path / "conf" / group).mkdir(parents=True)
    (tmp_path / "conf" / group / "own.yaml").write_text(content)
    assert says in refused(train, "--config-dir=conf", option)


def test_a_config_of_ones_own_may_have_variables(train, tmp_path) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    content = "# @package _global_\nrate: 3e-4\noptimizer: {lr: '${rate}'}"
    (tmp_path / "conf" / "experiment" / "own.yaml").write_text(content)
    train("--config-dir=conf", "+experiment=own")
    assert "lr: 0.0003" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("evaluate", "manifest=[a.jsonl,b.jsonl]"),
        ("evaluate", "checkpoint=null"),
        ("align", "manifest=[a.jsonl]"),
        ("transcribe", "output=[a]"),
    ],
)
def test_one_path_is_wanted(refused, command, option) -> None:
    given = [option] if option.startswith("checkpoint") else [option, "checkpoint=run"]
    if "manifest" not in option and command == "evaluate":
        given.append("manifest=a.jsonl")
    assert "must be one, and neither a list nor null" in refused(run, command, given)


@pytest.mark.parametrize("row", ["audio,text,,", "audio,,text"])
def test_columns_without_a_name(refused, tmp_path, row) -> None:
    (tmp_path / "table.csv").write_text(f"{row}\n0.flac,a,,\n")
    said = refused(run, "prepare", ["corpus=table", "corpus.path=table.csv", "out=data"])
    assert "columns have no name" in said


def test_tables_and_manifests_that_cannot_be_read(refused, tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    said = refused(run, "prepare", ["corpus=table", "corpus.path=folder", "out=data"])
    assert "folder: cannot be read (Is a directory)" in said


def test_a_benchmark_keeps_what_is_none(refused, tmp_path) -> None:
    (tmp_path / "mine.json").write_text("[1]")
    assert "json=mine.json: the file is there, and not a benchmark's" in refused(
        run, "benchmark", ["training", "json=mine.json"]
    )
    assert (tmp_path / "mine.json").read_text() == "[1]"


def test_the_second_of_a_kind(train, refused) -> None:
    options = ["augment=[noise]", "+augment@augment.music=noise", "augment.music.path=nowhere"]
    assert "augment.music.path=nowhere: no such folder" in refused(train, *options)


# --- audio


def damage(kind: str, path: Path) -> None:
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "not audio":
        path.write_bytes(b"<html>404</html>" * 100)
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:9000])
    elif kind == "zero length":
        soundfile.write(path, np.zeros(0), 16000, format="WAV")
    elif kind == "nan":
        samples = np.zeros(16000, np.float32)
        samples[5] = np.nan
        soundfile.write(path, samples, 16000, format="WAV", subtype="FLOAT")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "no such audio file"),
        ("empty", "the file is empty"),
        ("not audio", "cannot be read as audio"),
        ("truncated", "2.flac"),
        ("zero length", "no audio"),
        ("nan", "not numbers"),
    ],
)
def test_audio_that_cannot_be_used(train, refused, noise_manifest: Path, kind: str, says: str) -> None:
    audio = noise_manifest.parent / "2.flac"
    damage(kind, audio)
    error = refused(train)
    assert str(audio) in error
    assert says in error


@pytest.mark.parametrize("measured", [True, False])
def test_audio_that_is_passed_over(train, noise_manifest: Path, tmp_path: Path, measured: bool, capsys) -> None:
    """Also before the first step: where the manifest has no durations, and alone in a batch of the statistics."""
    damage("not audio", noise_manifest.parent / "2.flac")
    rewrite(noise_manifest, 2, duration=1.5 if measured else None)
    train("data.failures=skip", "data.batch_seconds=1")
    assert (tmp_path / "run" / "bundle").is_dir()
    if measured:
        assert "left out: 2: " in capsys.readouterr().err
    else:
        assert '"reason": "unreadable audio"' in (tmp_path / "run" / "dropped.jsonl").read_text("utf-8")


def test_a_monitor_that_is_not_logged(train, refused, noise_manifest: Path) -> None:
    error = refused(train, "monitor=wer", f"data.validation={noise_manifest}")
    assert "monitor=wer: there is val_wer, val_cer" in error


def test_an_offset_beyond_the_end(train, refused, noise_manifest: Path) -> None:
    rewrite(noise_manifest, 1, offset=5.0)
    error = refused(train)
    assert "1.flac: no audio at 5.000 s" in error


def test_a_channel_that_is_not_there(train, refused) -> None:
    assert "no channel 1" in refused(train, "data.channel=1")


# --- transcripts


def test_unknown_character(train, refused, noise_manifest: Path) -> None:
    rewrite(noise_manifest, 1, text="two ß")
    error = refused(train, "+tokenizer.labels=' abcdefghijklmnopqrstuvwxyz'".lstrip("+"))
    assert "'ß'" in error
    assert "data.unknown=drop" in error


def test_transcripts_longer_than_ctc_allows_are_dropped(
    train, refused, noise_manifest: Path, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    rewrite(noise_manifest, 1, text="two " * 20)
    train()
    out = capsys.readouterr().out
    assert "1 too short for CTC (0.00 h)" in out
    (row,) = map(json.loads, (tmp_path / "run" / "dropped.jsonl").read_text("utf-8").splitlines())
    assert row["id"] == "1"
    assert row["reason"] == "too short for CTC"

    for line in range(4):
        rewrite(noise_manifest, line, text="two " * 20)
    error = refused(train, "out=other")
    assert "No utterance is left to train on: 4 too short for CTC" in error


# --- folders and checkpoints


def test_an_output_folder_that_exists(train, refused, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    error = refused(train)
    assert "out=run: the folder exists" in error
    assert "resume=auto" in error
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_an_output_folder_that_cannot_be_written(train, refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "out=file/run: cannot be written" in refused(train, "out=file/run")
    if os.geteuid():  # root may write everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "out=locked/run: cannot be written (Permission denied)" in refused(train, "out=locked/run")


def test_resume_from_nowhere(train, refused) -> None:
    assert "resume=no.ckpt: no such checkpoint" in refused(train, "resume=no.ckpt")


def test_the_disk_is_full(train, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    from asr.training import checkpoints

    def full(*_args, **_kwargs) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    error = refused(train)
    assert "run: cannot be written (No space left on device)" in error
    assert "resume=auto out=run" in error


def test_a_trained_recognizer_on_bad_input(
    train, refused, noise_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train()
    assert "the folder exists" in refused(train)

    # another vocabulary
    rewrite(noise_manifest, 0, text="xylophone")
    assert "the tokenizer's labels" in refused(train, "resume=auto", "max_steps=2")

    # transcription goes on, and fails at the end
    damage("nan", tmp_path / "1.flac")
    (tmp_path / "语音").mkdir()
    good = tmp_path / "语音" / "a=b, (1).flac"
    (tmp_path / "0.flac").rename(good)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run("transcribe", ["checkpoint=run", "threads=1", "device=cpu", str(good), "1.flac", "missing.wav"])
    captured = capsys.readouterr()
    assert stopped.value.code == 1
    assert str(good) in captured.out
    assert "1.flac: has samples that are not numbers" in captured.err
    assert "missing.wav: no such audio file" in captured.err
    assert "2 of 3 files could not be transcribed" in captured.err

    def evaluate(*options: str) -> None:
        run("evaluate", ["checkpoint=run", "threads=1", "device=cpu", *options])

    assert "no.jsonl: no such manifest" in refused(evaluate, "manifest=no.jsonl")
    assert "0.flac: no such audio file" in refused(evaluate, f"manifest={noise_manifest}")
    (tmp_path / "silent.jsonl").write_text(json.dumps({"audio_filepath": "2.flac"}) + "\n")
    assert "has no 'text' to score against" in refused(evaluate, "manifest=silent.jsonl")
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "summary.json").write_text("{}")
    assert "scores" in refused(evaluate, "manifest=silent.jsonl", "out=scores")
    assert "there is no CUDA device" in refused(run, "transcribe", ["checkpoint=run", "device=cuda", "2.flac"])
    assert "No audio files in" in refused(run, "transcribe", ["checkpoint=run", "run/checkpoints"])
