from __future__ import annotations

import json
import os

import numpy as np
import pytest
import soundfile
from rich.console import Console

from asr.corpora import Dropped, Report, write_corpus
from asr.corpora.check import check_utterance
from asr.data.audio import read_audio
from asr.data.manifest import read_manifest
from asr.errors import DataError
from asr.types import Utterance

CORPUS = {"_target_": "some.Corpus", "root": "/somewhere"}


def reason(path, text="HI", **fields):
    result = check_utterance(Utterance(str(path), text, **fields), min_duration=0.1, max_duration=2)
    return result.reason if isinstance(result, Dropped) else "kept"


def test_every_reason_is_counted_printed_and_listed(tmp_path, sound):
    (tmp_path / "text.wav").write_text("this is not audio")
    (tmp_path / "zero.wav").touch()
    (tmp_path / "bare.raw").write_bytes(bytes(32000))
    utterances = [
        Utterance(str(sound(tmp_path / "good.wav", 0.5)), "GOOD", id="good", speaker="s", extra={"age": 7}),
        Utterance(str(tmp_path / "gone.wav"), "X", id="gone"),
        Utterance(str(tmp_path / "text.wav"), "X", id="text"),
        Utterance(str(tmp_path / "zero.wav"), "X", id="zero"),
        Utterance(str(tmp_path / "bare.raw"), "X", id="bare"),
        Utterance(str(sound(tmp_path / "header.wav", 0)), "X", id="header"),
        Utterance(str(sound(tmp_path / "silent.wav", peak=0)), "X", id="silent"),
        Utterance(str(sound(tmp_path / "hush.wav", peak=5e-5)), "X", id="hush"),
        Utterance(str(tmp_path / "good.wav"), "  ", id="mute"),
        Utterance(str(sound(tmp_path / "short.wav", 0.05)), "X", id="short"),
        Utterance(str(sound(tmp_path / "long.wav", 3)), "X", id="long"),
        Dropped("own", "", "a reason of the corpus"),
    ]
    report = write_corpus(CORPUS, {"train": utterances}, tmp_path / "out", max_duration=2)
    (kept,) = read_manifest(report.manifests["train"])
    assert (kept.text, kept.duration, kept.speaker, kept.extra) == ("GOOD", 0.5, "s", {"age": 7})
    listed = [json.loads(line) for line in (tmp_path / "out/dropped.jsonl").read_text().splitlines()]
    assert [(row["id"], row["reason"]) for row in listed] == [
        ("gone", "missing audio"),
        ("text", "unreadable audio"),
        ("zero", "empty audio"),
        ("bare", "unreadable audio"),
        ("header", "empty audio"),
        ("silent", "silent audio"),
        ("hush", "silent audio"),
        ("mute", "missing text"),
        ("short", "duration outside bounds"),
        ("long", "duration outside bounds"),
        ("own", "a reason of the corpus"),
    ]
    assert listed[-2]["detail"] == "3.000 s is over max_duration=2" and listed[-2]["split"] == "train"
    assert report.dropped["train"]["duration outside bounds"].utterances == 2
    assert report.dropped["train"]["duration outside bounds"].hours == pytest.approx(3.05 / 3600)
    assert Report.load(tmp_path / "out") == report
    console = Console(width=80)
    with console.capture() as printed:
        console.print(report.table())
    assert "dropped: silent audio" in printed.get() and "kept" in printed.get()


@pytest.mark.parametrize("name", ["cut.wav", "cut.flac", "cut.mp3", "cut.sph", "cut.aiff", "cut.au"])
def test_audio_cut_short_is_unreadable(tmp_path, sound, name):
    options = {"format": "NIST", "subtype": "PCM_16"} if name.endswith("sph") else {}
    path = sound(tmp_path / name, 1.5, **options)
    assert reason(path) == "kept"
    os.truncate(path, path.stat().st_size * 2 // 3)
    assert reason(path) == "unreadable audio"


def test_names_that_are_no_utf8(tmp_path, sound):
    os.rename(sound(tmp_path / "a.wav", 0.5), tmp_path / os.fsdecode(b"caf\xe9.wav"))
    [name] = [str(path) for path in tmp_path.iterdir()]
    report = write_corpus(CORPUS, {"train": [Utterance(name, "X", id="a")]}, tmp_path / "out")
    [kept] = read_manifest(report.manifests["train"])
    assert kept.audio_filepath == name and len(read_audio(name, 16000)) == 8000


def test_nan_samples_are_unreadable(tmp_path):
    samples = np.full(16000, 0.1)
    samples[15000] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16000, subtype="FLOAT")
    assert reason(tmp_path / "nan.wav") == "unreadable audio"


def test_speech_after_a_long_silence_is_kept(tmp_path):
    samples = np.zeros(8000 * 20)
    samples[-100:] = 0.1
    soundfile.write(tmp_path / "late.wav", samples, 8000)
    assert isinstance(check_utterance(Utterance(str(tmp_path / "late.wav"), "HI")), Utterance)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
def test_durations_never_pass_the_end_of_the_file_and_lose_no_sample(tmp_path, rate):
    for count in (rate // 3, rate // 3 + 1, rate // 7 + 5):
        path = tmp_path / f"{count}.wav"
        soundfile.write(path, np.full(count, 0.1), rate)
        duration = check_utterance(Utterance(str(path), "HI")).duration
        assert duration <= count / rate and round(duration * rate) == count
        assert len(read_audio(path, rate, 0.0, duration)) == count


def test_segments_are_held_against_their_file(tmp_path, sound):
    path = sound(tmp_path / "a.wav", 1.0)
    assert reason(path, offset=0.5, duration=0.3) == "kept"
    assert reason(path, offset=1.5) == "empty audio"
    assert reason(path, offset=0.5, duration=1.4) == "unreadable audio"
    overshooting = check_utterance(Utterance(str(path), "HI", duration=0.7, offset=0.4))
    assert overshooting.duration == 0.6


def test_order_is_kept_and_nothing_is_read_ahead_of_need(tmp_path, sound):
    path, taken = str(sound(tmp_path / "a.wav")), []

    def many():
        for number in range(300):
            taken.append(number)
            yield Utterance(path, "HI", id=f"{number}")

    report = write_corpus(CORPUS, {"train": many()}, tmp_path / "out")
    assert [u.id for u in read_manifest(report.manifests["train"])] == [str(n) for n in range(300)]
    unread = many()
    taken.clear()
    with pytest.raises(DataError, match="other arguments"):
        write_corpus(CORPUS | {"root": "/elsewhere"}, {"train": unread}, tmp_path / "out")
    assert not taken


def test_duplicate_ids_are_named(tmp_path, sound):
    utterances = [Utterance(str(sound(tmp_path / "a.wav")), "HI", id=name) for name in "abcab"]
    with pytest.raises(DataError, match="train: ids that occur more than once: a, b"):
        write_corpus(CORPUS, {"train": utterances}, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_split_with_nothing_kept_says_why(tmp_path, sound):
    bad = [Utterance(str(tmp_path / "gone.wav"), "X", id="1"), Utterance(str(sound(tmp_path / "a.wav")), "", id="2")]
    with pytest.raises(DataError, match=r"test: no utterance can be kept: 1 missing audio .*gone.wav.*1 missing text"):
        write_corpus(CORPUS, {"test": bad}, tmp_path / "out")


def test_nothing_is_overwritten(tmp_path, sound):
    utterances = [Utterance(str(sound(tmp_path / "a.wav")), "HI", id="a")]
    out = tmp_path / "out"
    write_corpus(CORPUS, {"train": utterances, "old": utterances}, out)
    write_corpus(CORPUS, {"train": utterances}, out)  # the same arguments: made anew
    assert sorted(path.name for path in out.iterdir()) == ["dropped.jsonl", "report.json", "train.jsonl"]
    with pytest.raises(DataError, match=r"root=/somewhere \(now /else\).*another out= .*or delete"):
        write_corpus(CORPUS | {"root": "/else"}, {"train": utterances}, out)
    (out / "report.json").unlink()
    with pytest.raises(DataError, match="did not make"):
        write_corpus(CORPUS, {"train": utterances}, out)
    with pytest.raises(DataError, match="is a file"):
        write_corpus(CORPUS, {"train": utterances}, tmp_path / "a.wav")
    with pytest.raises(DataError, match="cannot name a split"):
        write_corpus(CORPUS, {"../train": utterances}, tmp_path / "other")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_an_error_for_the_person(tmp_path, sound):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(DataError, match="Permission denied"):
        write_corpus(CORPUS, {"train": [Utterance(str(sound(tmp_path / "a.wav")), "HI")]}, tmp_path / "locked/out")
