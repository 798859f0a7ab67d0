"""The commands and snippets of the README run, in its order, on a miniature of the data that they name.

Those for many GPUs and clusters, in blocks marked `bash`, are composed.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from asr import cli

README = Path(__file__).parents[1] / "README.md"
SMALL = (
    "encoder.layers=3", "encoder.width=8", "encoder.channels=2", "epochs=1", "trainer=cpu", "data.workers=0",
    "threads=1", "logger=[csv]", "+trainer.enable_progress_bar=false", "callbacks=[checkpoints]",
)  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


def commands(language: str = "sh") -> list[list[str]]:
    lines = "".join(blocks(language)).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README's commands name."""
    random = np.random.default_rng(0)

    def noise(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * random.standard_normal(16000), 16000)

    for split, folder, speakers in (("train", "an4_clstk", "abcdefghij"), ("test", "an4test_clstk", "kl")):
        ids = [f"{folder}/{speaker}/{split}{k}-{speaker}" for speaker in speakers for k in range(2)]
        for utterance in ids:
            noise(tmp_path / "DIR" / "wav" / f"{utterance}.wav")
        (tmp_path / "DIR/etc").mkdir(exist_ok=True)
        (tmp_path / f"DIR/etc/an4_{split}.fileids").write_text("".join(f"{u}\n" for u in ids))
        lines = [f"<s> YES NO </s> ({u.rsplit('/', 1)[1]})\n" for u in ids]
        (tmp_path / f"DIR/etc/an4_{split}.transcription").write_text("".join(lines))
    noise(tmp_path / "a.wav")
    noise(tmp_path / "talks" / "b.flac")
    noise(tmp_path / "more" / "c.flac")
    rows = "".join(f"more/{name}.wav,hello there,{name}\n" for name in "pqrs")
    for name in "pqrs":
        noise(tmp_path / "more" / f"{name}.wav")
    (tmp_path / "recordings.csv").write_text("file,sentence,who\n" + rows)
    noise(tmp_path / "dev.wav")
    noise(tmp_path / "noises" / "hum.wav")
    (tmp_path / "dev.jsonl").write_text('{"audio_filepath": "dev.wav", "text": "yes no"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_and_python(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    run = 0
    for words in commands():
        piped = words[:1] == ["arecord"]
        words = words[words.index("|") + 1 :] if piped else words
        if words[0] != "python":  # the two commands of the top: CI runs them as they stand
            assert words[:4] == ["pip", "install", "uv", "&&"]
            continue
        if piped:
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(bytes(64_000))))
        arguments = [str(p) for word in words[2:] for p in (sorted(world.glob(word)) if "*" in word else [word])]
        command = Path(words[1]).stem
        options = SMALL if command == "train" else ()
        if "+experiment=an4" in arguments:  # twenty utterances of two words have no 150 labels
            options += ("tokenizer.vocab_size=10",)
        an4 = "+experiment=an4" in arguments and "encoder=lstm" not in arguments
        if an4 or "encoder=vgg_blstm_fine" in arguments:
            options += ("encoder.channels=[2,2,2,2]",)
        monkeypatch.setattr(sys, "argv", [words[1], *arguments, *options])
        monkeypatch.setenv("ASR_RUN_ID", str(run))
        capsys.readouterr()
        cli.run(command, [*arguments, *options])
        run += 1
        printed = capsys.readouterr().out
        assert "was trained with" not in printed  # what the example starts from has the encoder that it names
        if command == "evaluate":
            assert re.search(r"WER [\d.]+ % \[\d+ / 8, \d+ ins, \d+ del, \d+ sub\], 95 % interval", printed)
        if command == "transcribe":
            assert printed.count('"audio_filepath"') == (3 if "format=json" in arguments else 0)
    assert run >= 6
    capsys.readouterr()
    exec(compile(next(b for b in blocks("python") if "asr.load" in b), str(README), "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_trainings_on_clusters_are_composed(capsys: pytest.CaptureFixture) -> None:
    found = [words for words in commands("bash") if any(word.startswith("scripts/train") for word in words)]
    assert len(found) >= 5
    for words in found:
        script = next(k for k, word in enumerate(words) if word.startswith("scripts/train"))
        arguments = [word.replace("seed=0,1,2", "seed=0") for word in words[script + 1 :] if word != "-m"]
        cli.run("train", [*arguments, "--cfg", "job"])
        assert "librispeech" in capsys.readouterr().out


def test_the_plugin_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_package.py").write_text(next(b for b in blocks("python") if "class MyEncoder" in b))
    monkeypatch.syspath_prepend(tmp_path)
    from my_package import MyEncoder

    from asr.testing import check_encoder

    check_encoder(MyEncoder(input_dim=80, width=64), input_dim=80)
