from __future__ import annotations

import os
from pathlib import Path

import pytest

from asr.errors import ConfigError, DataError
from asr.types import Transcript
from asr.writers.files import TranscriptFiles, recording_names, safe_names

pytestmark = pytest.mark.usefixtures("clean")


def write(files: TranscriptFiles, *audio: str) -> None:
    for path in audio:
        files.write(Transcript(path, path, (), 1.0))


def tree(folder: str = ".") -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_a_folder_keeps_the_order_of_the_audio() -> None:
    audio = {"talks": ["talks/a b.wav", "talks/deep/a b.wav"], "/x/语音.mp3": ["/x/语音.mp3"], "-": ["-"]}
    files = TranscriptFiles("out", ["txt", "textgrid"], audio)
    write(files, "talks/a b.wav", "talks/deep/a b.wav", "/x/语音.mp3", "-")
    stems = ("a b", "deep/a b", "语音", "stdin")
    assert tree("out") == {stem + suffix for stem in stems for suffix in (".txt", ".TextGrid")}


def test_beside_the_audio() -> None:
    os.makedirs("talks/deep")
    files = TranscriptFiles("beside", ["srt"], {"talks": ["talks/a.wav", "talks/deep/b.mp3"], "c.flac": ["c.flac"]})
    write(files, "talks/a.wav", "c.flac", "talks/deep/b.mp3")
    assert tree() == {"talks/a.srt", "talks/deep/b.srt", "c.srt"}
    with pytest.raises(ConfigError, match="standard input lies nowhere"):
        TranscriptFiles("beside", ["srt"], {"-": ["-"]})


def test_recordings_of_the_same_name() -> None:
    files = TranscriptFiles("out", ["srt"], {"x": ["x/a.wav", "x/A.mp3", "x/b.wav"]})
    write(files, "x/a.wav", "x/A.mp3", "x/b.wav")
    assert tree("out") == {"a.wav.srt", "A.mp3.srt", "b.srt"}
    files = TranscriptFiles("cases", ["srt"], {"x": ["x/A.wav", "x/a.wav"]})
    write(files, "x/A.wav", "x/a.wav")
    assert tree("cases") == {"A.wav.srt", "a.wav-2.srt"}
    with pytest.raises(ConfigError, match=r"x/a\.wav and y/a\.wav: both would go to out/a\.wav"):
        TranscriptFiles("out", ["srt"], {"x/a.wav": ["x/a.wav"], "y/a.wav": ["y/a.wav"]})


def test_nothing_is_overwritten_unasked() -> None:
    audio = {"x": ["x/a.wav", "x/b.wav", "x/c.wav"]}
    os.makedirs("out")
    for name in ("a.txt", "c.txt"):
        Path("out", name).write_text("mine")
    with pytest.raises(DataError, match=r"out/a\.txt, out/c\.txt: exist already\. .*overwrite=true"):
        TranscriptFiles("out", ["srt", "txt"], audio)
    assert tree("out") == {"a.txt", "c.txt"} and Path("out/a.txt").read_text() == "mine"
    write(TranscriptFiles("out", ["txt"], audio, overwrite=True), "x/a.wav")
    assert Path("out/a.txt").read_text() != "mine"


def test_a_folder_that_cannot_be() -> None:
    Path("file").touch()
    with pytest.raises(DataError, match="output=file/out: cannot be made"):
        TranscriptFiles("file/out", ["txt"], {"a.wav": ["a.wav"]})
    files = TranscriptFiles("out", ["txt"], {"a.wav": ["a.wav"]})
    os.rmdir("out")
    with pytest.raises(DataError, match=r"out/a\.txt: cannot be written .*output=DIR"):
        write(files, "a.wav")


def test_names_of_files() -> None:
    names = ["a/b c", "a_b_c", "A/B C", "..", "", "语音/1", "x" * 300, "x" * 300, "..\\a", 'say "so"?']
    found = safe_names(names)
    assert found[:6] == ["a_b_c", "a_b_c-2", "A_B_C-3", "_", "_-2", "语音_1"]
    assert len({name.lower() for name in found}) == len(names)
    assert all(len(name.encode()) < 240 and not set(name) & set('/\\:*?"<>| ') for name in found)
    assert recording_names(["/x/a/1.wav", "/x/b/2.wav", "/x/a/1.wav"]) == {"/x/a/1.wav": "1", "/x/b/2.wav": "2"}
    assert recording_names(["/x/a/1.wav", "/x/b/1.wav"]) == {"/x/a/1.wav": "a_1", "/x/b/1.wav": "b_1"}
    assert recording_names([]) == {}
