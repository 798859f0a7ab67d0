"""`asr transcribe`, with a recognizer that hears tones: where transcripts go, and anything that may be thrown at it."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pysubs2
import pytest
import soundfile

from asr import recognizer as recognizer_module
from asr.bundle import pipeline_config, save_bundle
from asr.cli import run
from asr.progress import AudioProgress
from asr.transcription import find_audio
from tests.test_align import LETTERS, RATE, speak
from tests.test_recognizer import CONFIG, pipeline
from tests.test_recordings import tones

pytestmark = pytest.mark.usefixtures("clean")


@pytest.fixture(autouse=True)
def recognizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recognizer of any checkpoint."""
    monkeypatch.setattr(recognizer_module, "load", lambda *_: tones())


def say(path: str, text: str = "bad cab", **options) -> str:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    soundfile.write(path, speak(text), RATE, **options)
    return path


def transcribe(*arguments: str) -> None:
    run("transcribe", ["checkpoint=x", *arguments])


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    def call(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            transcribe(*arguments)
        assert stopped.value.code == 1
        return capsys.readouterr().err

    return call


# --- formats and places


def test_to_standard_output(capsys: pytest.CaptureFixture) -> None:
    say("a.wav"), say("语音/a=b, (1).flac", "fed")
    transcribe("a.wav", "语音")
    assert capsys.readouterr().out == "a.wav\tbad cab\n语音/a=b, (1).flac\tfed\n"
    transcribe("语音/a=b, (1).flac", "a.wav", "format=json")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["fed", "bad cab"]
    assert [segment["text"] for segment in rows[1]["segments"]] == ["bad cab"]
    transcribe("a.wav", "语音", "format=ctm", "channel=0")
    assert [line.split()[:5] for line in capsys.readouterr().out.splitlines()] == [
        ["a", "1", "0.000", "0.440", "bad"],
        ["a", "1", "0.640", "0.440", "cab"],
        ["a=b,_1", "1", "0.000", "0.440", "fed"],
    ]
    transcribe("a.wav", "format=srt")
    assert capsys.readouterr().out == "1\n00:00:00,000 --> 00:00:01,080\nbad cab\n"
    for form, first in (("vtt", "WEBVTT"), ("tsv", "start\tend\ttext"), ("textgrid", 'File type = "ooTextFile"')):
        transcribe("a.wav", f"format={form}")
        assert capsys.readouterr().out.startswith(first + "\n")


def test_to_files(capsys: pytest.CaptureFixture) -> None:
    for path, text in (("talks/a b.wav", "bad cab"), ("talks/deep/c.flac", "fed"), ("d.wav", "hag")):
        say(path, text)
    transcribe("talks", "d.wav", "output=out/new", "format=[txt,srt,json]")
    stems = {"a b": "bad cab", "deep/c": "fed", "d": "hag"}
    written = {str(path.relative_to("out/new")) for path in Path("out/new").rglob("*.*")}
    assert written == {f"{stem}.{form}" for stem in stems for form in ("txt", "srt", "json")}
    for stem, text in stems.items():
        assert Path(f"out/new/{stem}.txt").read_text("utf-8") == text + "\n"
        [cue] = pysubs2.load(f"out/new/{stem}.srt")
        assert cue.plaintext == text
        assert json.loads(Path(f"out/new/{stem}.json").read_text("utf-8"))["text"] == text
    assert capsys.readouterr().out == ""
    transcribe("talks", "output=beside", "format=vtt")
    assert Path("talks/a b.vtt").exists() and Path("talks/deep/c.vtt").exists()


def test_nothing_is_overwritten_unasked(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    say("talks/a.wav"), say("talks/b.wav")
    Path("talks/b.srt").write_text("mine")
    monkeypatch.setattr(recognizer_module, "load", None)  # it is seen ahead of the work
    error = refused("talks", "output=beside", "format=[txt,srt]")
    assert error.startswith("error: talks/b.srt: exists already.") and "overwrite=true" in error
    assert not Path("talks/a.txt").exists() and Path("talks/b.srt").read_text() == "mine"
    monkeypatch.setattr(recognizer_module, "load", lambda *_: tones())
    transcribe("talks", "output=beside", "format=[txt,srt]", "overwrite=true")
    assert "bad cab" in Path("talks/b.srt").read_text()


def test_what_cannot_be(refused) -> None:
    say("a.wav"), say("b.wav")
    assert "format=xml: no such format" in refused("a.wav", "format=[txt,xml]")
    assert "Several formats need output=DIR, or output=beside" in refused("a.wav", "format=[txt,srt]")
    assert "Several files as srt need output=DIR" in refused("a.wav", "b.wav", "format=srt")
    assert "output=beside: standard input lies nowhere" in refused("-", "output=beside")
    assert "vad=loud: there is no such config in the group 'vad'. There are: energy" in refused("a.wav", "vad=loud")
    assert "max_segment=0: must be" in refused("a.wav", "max_segment=0")
    assert "min_pause=short: must be of type float" in refused("a.wav", "min_pause=short")


def test_options_of_segmentation_reach_the_recognizer(monkeypatch: pytest.MonkeyPatch) -> None:
    say("a.wav")
    given: list = []
    monkeypatch.setattr(recognizer_module, "load", lambda *options: given.append(options) or tones())
    transcribe("a.wav", "vad=none", "max_segment=12", "min_pause=0.3")
    transcribe("a.wav", "vad=energy", "vad.share=0.3")
    assert given[0][-3:] == ({"_target_": "asr.vad.Everything"}, 12, 0.3)
    assert given[1][-3]["share"] == 0.3


def test_standard_input(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    content = Path(say("a.wav")).read_bytes()
    for size in (content[40:44], b"\xff\xff\xff\xff"):  # written to a pipe, the length is not known
        pipe = SimpleNamespace(buffer=io.BytesIO(content[:40] + size + content[44:]))
        monkeypatch.setattr(sys, "stdin", pipe)
        transcribe("-")
        assert capsys.readouterr().out == "-\tbad cab\n"
        pipe.buffer.seek(0)
        transcribe("-", "output=out", "format=[txt,ctm]", "overwrite=true")
        assert Path("out/stdin.txt").read_text() == "bad cab\n"


# --- folders


def test_links_that_lead_in_circles() -> None:
    say("talks/deep/a.wav"), say("elsewhere/b.wav")
    os.symlink("..", "talks/deep/up")
    os.symlink("../..", "talks/deep/out")  # a folder that holds the one that was named
    os.symlink("../elsewhere", "talks/elsewhere")
    os.symlink("gone.wav", "talks/broken.wav")
    os.symlink("self", "talks/self")
    found = list(find_audio(["talks"]))
    assert found == ["talks/broken.wav", "talks/deep/a.wav", "talks/elsewhere/b.wav"]


def damaged(folder: Path) -> Iterator[tuple[str, str]]:
    """Write forty files that are no recordings; their names, and what is said of them."""
    good = Path(say(str(folder / "good.wav"))).read_bytes()
    flac = bytearray(Path(say(str(folder / "good.flac"), "bad cab fed")).read_bytes())
    nan = np.full(800, np.nan, np.float32)
    odd = folder / "odd"
    odd.mkdir()

    def hours(content: bytes, size: int) -> bytes:
        return content[:40] + struct.pack("<I", size)

    flac[21:26] = bytes([flac[21] & 0xF0]) + struct.pack(">I", 10 * 3600 * RATE)
    kinds: dict[str, tuple[bytes, str]] = {
        "truncated.wav": (good[: len(good) // 2], "cut short"),
        "zero.wav": (b"", "is empty (0 bytes)"),
        "text.wav": (b"This is no audio.\n" * 99, "cannot be read as audio"),
        "ten hours.wav": (hours(good, 36000 * RATE * 2), "no audio"),
        "ten hours.flac": (bytes(flac[:200]), "ten hours.flac: "),
        "ten hours more.flac": (bytes(flac), "cannot be decoded"),
        "head.wav": (good[:20], "cannot be read as audio"),
        "pdf.mp3": (b"%PDF-1.7\n" + bytes(999), "cannot be read as audio"),
        "film.mp4": (b"\0\0\0\x20ftypisom" + bytes(999), "needs ffmpeg, and there is none"),
        "list.m4a": (b"#EXTM3U\nhttp://localhost/a.ts\n", "cannot be read as audio"),
        "罐 头,=(1).wav": (good[:60], "cut short"),
    }
    for name, (content, message) in kinds.items():
        for copy in ("", "again "):
            (odd / (copy + name)).write_bytes(content)
            yield copy + name, message
    for k in range(6):
        soundfile.write(odd / f"nan{k}.wav", nan, RATE, subtype="FLOAT")
        yield f"nan{k}.wav", "not numbers"
        os.symlink("nowhere.wav", odd / f"link{k}.wav")
        yield f"link{k}.wav", "no such audio file"
    for k in range(3):
        os.mkfifo(odd / f"pipe{k}.wav")
        yield f"pipe{k}.wav", "device or pipe"
    soundfile.write(odd / "none.wav", np.zeros(0), RATE)
    yield "none.wav", "no audio"
    soundfile.write(odd / "rate.wav", speak("a"), 2**31 - 1)
    yield "rate.wav", "sample rate of 2147483647 Hz"
    os.mkdir(odd / "locked", 0o000)
    os.chmod(odd / "locked", 0o700)
    soundfile.write(odd / "inf.wav", np.full(800, np.inf, np.float32), RATE, subtype="FLOAT")
    yield "inf.wav", "not numbers"


def unusual(folder: Path) -> dict[str, str]:
    """Write recordings of unusual kinds; what is said in each."""
    folder.mkdir()
    samples = speak("bad cab")
    fast = np.repeat(samples, 24)
    soundfile.write(folder / "192 kHz.wav", fast, 192_000)
    soundfile.write(folder / "eight.wav", np.stack([samples] * 8, 1), RATE)
    soundfile.write(folder / "24.wav", samples, RATE, subtype="PCM_24")
    soundfile.write(folder / "float.wav", samples, RATE, subtype="FLOAT")
    soundfile.write(folder / "double.wav", samples, RATE, subtype="DOUBLE")
    soundfile.write(folder / "wrong.mp3", samples, RATE, format="WAV")
    soundfile.write(folder / "wrong.wav", samples, RATE, format="FLAC")
    soundfile.write(folder / "语音 a=b, (1).ogg", samples, RATE)
    soundfile.write(folder / "loud.wav", samples, RATE, subtype="ULAW", format="WAV")
    soundfile.write(folder / "silence.wav", np.zeros(RATE), RATE)
    soundfile.write(folder / "sample.wav", np.zeros(1), RATE)
    said = {str(path): "bad cab" for path in folder.iterdir()}
    return said | {str(folder / name): "" for name in ("silence.wav", "sample.wav")}


def test_a_folder_of_two_hundred_files(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    bad = dict(damaged(tmp_path / "all"))
    good = unusual(tmp_path / "all" / "unusual")
    good |= {
        str(tmp_path / "all" / name): text for name, text in (("good.wav", "bad cab"), ("good.flac", "bad cab fed"))
    }
    draw = np.random.default_rng(0)
    while len(good) < 160:
        path = str(tmp_path / "all" / f"{len(good)}.wav")
        good[path] = "".join(draw.permutation(list(LETTERS[1:]))[:5])
        say(path, good[path])
    assert len(bad) == 40
    os.symlink("..", tmp_path / "all" / "odd" / "loop")
    tracemalloc.start()
    with pytest.raises(SystemExit) as stopped:
        transcribe(str(tmp_path / "all"))
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    assert dict(line.split("\t") for line in captured.out.splitlines()) == good
    *errors, last = captured.err.splitlines()
    assert last == "error: 40 of 200 files could not be transcribed."
    for name, message in bad.items():
        [error] = [line for line in errors if line.startswith(f"error: {tmp_path / 'all' / 'odd' / name}: ")]
        assert message in error
    assert len(errors) == 40


def test_a_folder_that_cannot_be_read(refused) -> None:
    say("talks/a.wav")
    os.mkdir("talks/locked", 0o000)
    if os.access("talks/locked", os.R_OK):
        pytest.skip("this user may read everything")
    assert "talks/locked: is a folder that cannot be read (Permission denied)" in refused("talks")


def test_samples_without_a_header(refused, capsys: pytest.CaptureFixture) -> None:
    say("b.wav")
    Path("a.raw").write_bytes(bytes(32000))
    assert "a.raw: samples without a header, so their rate is unknown." in refused("a.raw", "b.wav", "output=out")
    assert Path("out/b.txt").read_text() == "bad cab\n"
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    assert AudioProgress(["a.raw"], terminal)._total == 0.0


def test_names_that_are_no_utf8(capsys: pytest.CaptureFixture) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    soundfile.write("a.wav", speak("bad cab"), RATE)
    os.rename("a.wav", name)
    transcribe(name)
    assert capsys.readouterr().out == "caf\\udce9.wav\tbad cab\n"
    transcribe(name, "format=json", "output=out")
    [row] = map(json.loads, next(Path("out").iterdir()).read_text("utf-8").splitlines())
    assert (row["audio_filepath"], row["text"]) == (name, "bad cab")


# --- progress


def test_progress_counts_minutes_of_audio(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write("a.wav", np.zeros(90 * RATE), RATE)
    Path("b.wav").write_text("no audio")
    monkeypatch.setenv("COLUMNS", "100")
    terminal, file = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    with AudioProgress(["a.wav", "b.wav"], terminal) as progress:
        progress.advance(45.0)
        progress.print("word " * 50)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        progress.print("[bold] " * 50)
        progress.advance(75.0)
    assert capsys.readouterr().out == "word " * 50 + "\n"
    assert "[bold] " * 50 + "\n" in terminal.getvalue().replace("\r", "")
    assert "0.0 / 1.5 min" in terminal.getvalue()
    assert "2.0 / 2.0 min" in terminal.getvalue() and "real-time factor 0.0" in terminal.getvalue()
    monkeypatch.setattr(soundfile, "SoundFile", lambda path: pytest.fail(f"{path} was opened"))
    with AudioProgress(["-"], terminal):  # standard input can be read once only
        pass
    with AudioProgress(["a.wav"], file) as progress:  # no terminal, no bar
        progress.advance(90.0)
    assert file.getvalue() == ""


# --- start-up


def test_what_is_loaded(tmp_path: Path) -> None:
    save_bundle(tmp_path / "bundle", pipeline(), pipeline_config(CONFIG), "")
    code = (
        "import sys; from asr.cli import run; run('transcribe', ['checkpoint=bundle', 'a.wav', 'device=cpu']);"
        "print(*sorted({'lightning', 'numba', 'jiwer', 'sentencepiece', 'onnxruntime'} & set(sys.modules)))"
    )
    say("a.wav")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("a.wav\t") and done.stdout.splitlines()[1:] == [""]


def test_the_bar_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    code = (
        "import io; from asr.progress import AudioProgress; t = io.StringIO(); t.isatty = lambda: True\n"
        "AudioProgress(['pipe.wav'], t)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
