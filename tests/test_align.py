"""Alignment from audio and text to files, with a recognizer that hears tones: what lies where is known exactly."""

from __future__ import annotations

import io
import json
import math
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import asr
from asr import recognizer as recognizer_module
from asr.aligner import align_each
from asr.alignments import AlignmentFolder
from asr.bundle import pipeline_config, save_bundle
from asr.cli import run
from asr.data.manifest import read_manifest
from asr.decoders import Greedy
from asr.decoders.alignment import align as align_labels
from asr.errors import AudioError, DataError
from asr.pipeline import Pipeline, build
from asr.recognizer import Recognizer
from asr.text import Normalizer
from asr.tokenizers import Characters
from asr.types import Utterance

LETTERS = " abcdefgh"
RATE, FRAME = 8000, 320
"""Samples a second, and of an emission frame: 40 ms."""
TEXTS = ("bad cab", "feed a hag", "cage", "beef", "a deaf gaffe", "hegge", "facade aha", "dab")


class Tones(torch.nn.Module):
    """Says of each frame how much it sounds like each label's tone; of silence that it is blank."""

    sample_rate, frame_seconds = RATE, FRAME / RATE

    def __init__(self):
        super().__init__()
        time = torch.arange(FRAME) / RATE
        angles = 2 * math.pi * (200 + 100 * torch.arange(1, len(LETTERS) + 1)[:, None]) * time
        self.register_buffer("waves", torch.cat([angles.cos(), angles.sin()]) * 2 / FRAME)

    def output_lengths(self, lengths):
        return (lengths // FRAME).clamp(min=1)

    def forward(self, waveforms, lengths):
        frames = torch.nn.functional.pad(waveforms, (0, -waveforms.shape[1] % FRAME)).unflatten(1, (-1, FRAME))
        cosine, sine = (frames @ self.waves.T).chunk(2, -1)
        energy = (cosine.square() + sine.square()).sqrt()
        blank = torch.full_like(energy[..., :1], 0.25)
        return (40 * torch.cat([blank, energy], -1)).log_softmax(-1), self.output_lengths(lengths)


def speak(text: str, noise: float = 0.0) -> np.ndarray:
    """Three frames of a letter's tone, one of silence, and so on."""
    time = np.arange(3 * FRAME) / RATE
    letter = [np.sin(2 * math.pi * (300 + 100 * LETTERS.index(letter)) * time) for letter in text]
    samples = np.concatenate([np.pad(0.9 * tone, (0, FRAME)) for tone in letter] or [np.zeros(FRAME)])
    return samples + noise * np.random.default_rng(0).normal(size=len(samples))


def expected_words(text: str, offset: float = 0.0) -> list[tuple[str, float, float]]:
    found, at = [], 0
    for word in text.split():
        at = text.index(word, at)
        found.append((word, offset + 0.16 * at, offset + 0.16 * (at + len(word)) - 0.04))
        at += len(word)
    return found


def places(words) -> list[tuple[str, float, float]]:
    return [(word.text, pytest.approx(word.start, abs=2e-3), pytest.approx(word.end, abs=2e-3)) for word in words]


def write(path: Path, samples: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE, subtype="FLOAT" if path.suffix == ".wav" else None)
    return str(path)


def write_manifest(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def tones() -> Recognizer:
    tokenizer = Characters(LETTERS)
    return Recognizer(Pipeline(Normalizer(), tokenizer, Tones(), Greedy(tokenizer)), "cpu", batch_seconds=5.0)


# --- from Python


@pytest.mark.parametrize("text", [*TEXTS, "a"])
def test_words_and_labels_are_where_they_are_said(tones, tmp_path, text):
    found = asr.align(tones, write(tmp_path / "a.wav", speak(text)), text)
    assert places(found.words) == expected_words(text)
    spoken = [k for k in range(len(text)) if text[k] != " "]
    assert places(found.labels) == [(text[k], 0.16 * k, 0.16 * k + 0.12) for k in spoken]
    assert (found.text, found.heard, found.score) == (text, text, pytest.approx(0, abs=1e-6))
    assert found.duration == pytest.approx(0.16 * len(text))
    assert all(word.confidence > 0.99 for word in found.words + found.labels)
    assert found.words == tones.transcribe(tmp_path / "a.wav").words


def test_text_as_people_write_it(tones, tmp_path):
    audio = write(tmp_path / "a.wav", speak("bad cab"))
    assert asr.align(tones, Path(audio), " Bad,\n CAB! ").words == asr.align(tones, audio, "bad cab").words
    with pytest.raises(DataError, match=r"a\.wav: The character 'z' \(U\+007A LATIN SMALL LETTER Z\)"):
        asr.align(tones, audio, "bad caz")
    with pytest.raises(DataError, match=r"of the text 'caz' is none") as raised:
        asr.align(tones, audio, "bad cab " * 1000 + "caz")
    assert len(str(raised.value)) < 500


def test_a_text_that_does_not_fit(tones, tmp_path):
    audio = write(tmp_path / "a.wav", speak("cab"))
    with pytest.raises(DataError, match=r"a\.wav: The transcript is too long .* 13 labels need 14 .* there are 12\."):
        asr.align(tones, audio, "bad cab add a")
    empty = asr.align(tones, audio, "")
    assert (empty.words, empty.labels, empty.text, empty.heard) == ((), (), "", "cab")
    assert empty.score < asr.align(tones, audio, "cb").score < asr.align(tones, audio, "cab").score
    with pytest.raises(AudioError, match=r"none\.wav: no such audio file"):
        asr.align(tones, tmp_path / "none.wav", "cab")


def test_confidence_tells_which_word_is_wrong(tones, tmp_path):
    found = asr.align(tones, write(tmp_path / "a.wav", speak("bad cab feed", noise=0.3)), "bad had feed")
    assert found.words[1].confidence < 0.01 < 0.9 < min(found.words[0].confidence, found.words[2].confidence)


def test_a_checkpoint_instead_of_a_recognizer(tmp_path):
    config = {
        "text": {"_target_": "asr.text.Normalizer"},
        "tokenizer": {"_target_": "asr.tokenizers.Characters", "labels": LETTERS},
        "featurizer": {"_target_": "asr.featurizers.LogMel", "bands": 20, "sample_rate": RATE},
        "encoder": {"_target_": "asr.encoders.Blstm", "layers": 1, "width": 16, "channels": 2},
        "decoder": {"_target_": "asr.decoders.Greedy"},
        "normalization": "utterance",
    }
    save_bundle(tmp_path / "bundle", build(config), pipeline_config(config), "")
    audio = write(tmp_path / "a.wav", speak("bad cab"))
    found = asr.align(tmp_path / "bundle", audio, "bad cab")
    assert found == asr.align(asr.load(tmp_path / "bundle"), audio, "bad cab")
    assert [word.text for word in found.words] == ["bad", "cab"]
    assert all(0 <= word.start < word.end <= found.duration for word in found.words)


def test_batches_and_broken_utterances(tones, tmp_path):
    paths = [write(tmp_path / f"{k}.wav", speak(text)) for k, text in enumerate(TEXTS)]
    (tmp_path / "broken.wav").write_text("no audio")
    utterances = [Utterance(path, text) for path, text in zip(paths, TEXTS, strict=True)]
    broken = [Utterance(str(tmp_path / "broken.wav"), "a"), Utterance(paths[0], "z"), Utterance(paths[0])]
    found = dict(align_each(tones, [*utterances, *broken]))
    for k, text in enumerate(TEXTS):
        alone = asr.align(tones, paths[k], text)
        assert (places(found[k].words), found[k].audio) == (expected_words(text), alone.audio)
        assert found[k].score == pytest.approx(alone.score, abs=1e-5)
    assert [type(found[k]) for k in (8, 9, 10)] == [AudioError, DataError, DataError]
    assert "no 'text' to align" in str(found[10])


# --- long recordings


def long_recording(utterances: int) -> tuple[np.ndarray, str, list[tuple[str, float, float]]]:
    """Utterances one after the other, with pauses; their text, and where its words are."""
    draw = np.random.default_rng(0)
    parts, words, at = [], [], 0
    for text in draw.choice(TEXTS, utterances):
        pause = FRAME * int(draw.integers(1, 50))
        samples = np.concatenate([np.zeros(pause), speak(text)])
        words += expected_words(text, (at + pause) / RATE)
        parts.append(samples)
        at += len(samples)
    return np.concatenate(parts), " ".join(word for word, *_ in words), words


def test_a_long_recording_is_aligned_as_one_in_one_piece(tones, tmp_path):
    samples, text, words = long_recording(80)
    samples = samples + 0.5 * np.random.default_rng(1).normal(size=len(samples))  # the best path is not obvious
    found = asr.align(tones, write(tmp_path / "a.wav", samples), text)
    assert found.duration == pytest.approx(len(samples) / RATE) and found.duration > 120
    emissions = tones.emissions([samples.astype(np.float32)]).numpy()
    labels = tones.pipeline.encode(text)
    exact = align_labels(emissions.log_probs[0], labels)
    spoken = [k for k, letter in enumerate(text) if letter != " "]
    assert [word.start for word in found.labels] == pytest.approx((0.04 * exact.starts[spoken]).tolist())
    assert [word.end for word in found.labels] == pytest.approx((0.04 * exact.ends[spoken]).tolist())
    right = sum(abs(a.start - start) < 0.05 for a, (_, start, _) in zip(found.words, words, strict=True))
    assert right > 0.95 * len(words)
    assert found.heard == tones.pipeline.decoder(emissions)[0][0].text


def test_long_and_short_utterances_in_any_order(tones, tmp_path):
    samples, text, words = long_recording(30)
    long = Utterance(write(tmp_path / "long.flac", samples), text)
    short = Utterance(write(tmp_path / "a.wav", speak("cab")), "cab")
    found = dict(align_each(tones, [short, long, Utterance(str(tmp_path / "none.wav"), "a"), long, short]))
    assert [places(found[k].words) for k in (0, 1, 3, 4)] == [
        expected_words("cab"),
        words,
        words,
        expected_words("cab"),
    ]
    assert isinstance(found[2], AudioError)


@pytest.mark.slow
def test_an_hour_in_bounded_memory(tones, tmp_path):
    samples, text, words = long_recording(1800)
    assert len(samples) > 3600 * RATE
    audio = write(tmp_path / "hour.flac", samples)
    del samples
    tracemalloc.start()
    found = asr.align(tones, audio, text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert places(found.words) == words
    assert peak < 150e6  # the samples alone are 115 MB


# --- the command


@pytest.fixture
def world(tones, tmp_path, monkeypatch, clean) -> Path:
    """A manifest of eight utterances, two of them segments of one file, and the recognizer for any checkpoint."""
    monkeypatch.setattr(recognizer_module, "load", lambda *_: tones)
    rows = []
    for k, text in enumerate(TEXTS[:6]):
        write(tmp_path / "audio" / f"{k}.wav", speak(text))
        rows.append({"audio_filepath": f"audio/{k}.wav", "text": text, "id": f"speaker/{k}"})
    both = np.concatenate([np.zeros(RATE), speak(TEXTS[6]), np.zeros(RATE), speak(TEXTS[7])])
    write(tmp_path / "audio" / "long talk.wav", both)
    for offset, text in ((1.0, TEXTS[6]), (2.0 + 0.16 * len(TEXTS[6]), TEXTS[7])):
        segment = {"offset": offset, "duration": 0.16 * len(text)}
        rows.insert(2, {"audio_filepath": "audio/long talk.wav", "text": text, **segment})
    write_manifest(tmp_path / "m.jsonl", rows)
    return tmp_path


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    def call(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run("align", ["checkpoint=x", *arguments])
        error = capsys.readouterr().err
        assert stopped.value.code == 1 and error.startswith("error: ")
        return error

    return call


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_manifest(world, capsys):
    run("align", ["checkpoint=x", "manifest=m.jsonl", "out=out", "format=[json,ctm,textgrid]", "worst=3"])
    rows, manifest = read_rows(world / "out" / "alignments.jsonl"), read_rows(world / "m.jsonl")
    assert [row["text"] for row in rows] == [row["text"] for row in manifest]  # in its order
    for row in rows:
        assert [(w["text"], w["start"], w["end"]) for w in row["words"]] == [
            (word, pytest.approx(start, abs=2e-3), pytest.approx(end, abs=2e-3))
            for word, start, end in expected_words(row["text"])
        ]
    printed = capsys.readouterr().out
    assert "the 3 utterances whose text fits worst" in printed and "alignments: out" in printed
    grids = {path.name for path in (world / "out").glob("*.TextGrid")}
    talks = {f"audio_long_talk@{row['offset']:.3f}.TextGrid" for row in manifest if "offset" in row}
    assert grids == talks | {f"speaker_{k}.TextGrid" for k in range(6)}
    assert 'text = "gaffe"' in (world / "out" / "speaker_4.TextGrid").read_text("utf-8")
    names = {path.name for path in (world / "out").iterdir()} - grids
    assert names == {"alignments.jsonl", "alignments.ctm", "suspicious.jsonl"}


def test_times_of_a_ctm_are_of_the_recording(world):
    run("align", ["checkpoint=x", "manifest=m.jsonl", "out=out", "format=ctm", "channel=0"])
    lines = [line.split() for line in (world / "out" / "alignments.ctm").read_text("utf-8").splitlines()]
    assert [(line[0], float(line[2])) for line in lines] == sorted((line[0], float(line[2])) for line in lines)
    found = [
        (word, float(start), float(start) + float(length)) for name, _, start, length, word, _ in lines if "_" in name
    ]
    expected = expected_words(TEXTS[6], 1.0) + expected_words(TEXTS[7], 2.0 + 0.16 * len(TEXTS[6]))
    assert found == [(w, pytest.approx(start, abs=2e-3), pytest.approx(end, abs=2e-3)) for w, start, end in expected]
    assert {line[0] for line in lines} == {"long_talk", *"012345"} and {line[1] for line in lines} == {"1"}
    assert not (world / "out" / "alignments.jsonl").exists()


def test_a_ctm_of_shards_names_the_utterances(tmp_path):
    names = {
        "s/0.tar#1536+48:8f3a21bc": ("speaker/0.5", "speaker_0.5"),
        "s/0.tar#60000+48:8f3a21bd": ("speaker/1.5", "speaker_1.5"),
        "s/0.tar#90000+48:8f3a21be": ("long talk", "long_talk-2"),  # the file below is called so already
        "talks/long talk.wav": ("another", "long_talk"),
    }
    utterances = [Utterance(path, "a", id=id) for path, (id, _) in names.items()]
    recordings = AlignmentFolder(tmp_path, ["ctm"], utterances).recordings
    assert recordings == {path: name for path, (_, name) in names.items()}


def test_swapped_transcripts_come_first(world, capsys):
    draw = np.random.default_rng(5)
    texts = ["".join(draw.choice(list(LETTERS[1:]), 6)) for _ in range(60)]
    rows = []
    for k, text in enumerate(texts):
        write(world / "s" / f"{k}.wav", speak(text, noise=0.8 * draw.random()))  # some are hard to hear
        rows.append({"audio_filepath": f"s/{k}.wav", "text": text, "id": str(k)})
    wrong = {
        4: texts[5], 5: texts[4],  # swapped
        17: texts[17][:3], 30: texts[30] + " bead", 31: texts[31][::-1],  # cut, longer, other
    }  # fmt: skip
    for k, text in wrong.items():
        rows[k]["text"] = text
    write_manifest(world / "s.jsonl", rows)
    run("align", ["checkpoint=x", "manifest=s.jsonl", "out=out", "worst=5"])
    found = read_rows(world / "out" / "suspicious.jsonl")
    assert {row["id"] for row in found[:5]} == {str(k) for k in wrong}
    assert [row["score"] for row in found] == sorted(row["score"] for row in found)
    assert len(found) == 60
    assert next(row["heard"] for row in found if row["id"] == "17") == texts[17]
    printed = capsys.readouterr().out
    assert all(texts[k] in printed for k in wrong)  # what was heard instead


def test_goes_on_after_broken_utterances(world, refused):
    (world / "audio" / "0.wav").write_text("no audio")
    rows = read_rows(world / "m.jsonl")
    rows[1]["text"], rows[5]["text"] = "zebra", "a" * 100
    write_manifest(world / "m.jsonl", rows)
    message = refused("manifest=m.jsonl", "out=out", "format=[json,textgrid]")
    assert "m.jsonl, line 1: " in message and "0.wav: cannot be read as audio" in message
    assert "m.jsonl, line 2: " in message and "The character 'z'" in message
    assert "m.jsonl, line 6: " in message and "100 labels need 199 frames" in message
    assert message.endswith("error: 3 of 8 utterances could not be aligned.\n")
    aligned = [row["text"] for row in read_rows(world / "out" / "alignments.jsonl")]
    assert aligned == [rows[k]["text"] for k in (2, 3, 4, 6, 7)]
    suspicious = read_rows(world / "out" / "suspicious.jsonl")
    assert [("error" in row) for row in suspicious] == [True] * 3 + [False] * 5
    assert len(list((world / "out").glob("*.TextGrid"))) == 5


def test_what_is_suspicious_is_a_manifest(world, refused):
    rows = read_rows(world / "m.jsonl")
    rows[2] |= {"text": "zebra", "speaker": "anna", "room": 3}
    write_manifest(world / "m.jsonl", rows)
    refused("manifest=m.jsonl", "out=out")
    given = {utterance.id: utterance for utterance in read_manifest(world / "m.jsonl")}
    found = {utterance.id: utterance for utterance in read_manifest(world / "out" / "suspicious.jsonl")}
    assert found.keys() == given.keys()
    for key, utterance in found.items():
        assert (utterance.offset, utterance.text) == (given[key].offset, given[key].text)
        assert os.path.samefile(utterance.audio_filepath, given[key].audio_filepath)
    [broken] = [utterance for utterance in found.values() if utterance.speaker == "anna"]
    assert broken.duration == rows[2]["duration"] and broken.extra.keys() == {"room", "error"}
    mended = world / "out" / "suspicious.jsonl"
    rows = [row | ({"text": "bad cab"} if "error" in row else {}) for row in read_rows(mended)]
    write_manifest(mended, rows)
    run("align", ["checkpoint=x", f"manifest={mended}", "out=again"])
    assert all("score" in row and "error" not in row for row in read_rows(world / "again" / "suspicious.jsonl"))
    audio = os.path.relpath(write(world / "named.wav", speak("bad cab")))
    run("align", ["checkpoint=x", audio, "transcript=bad cab", "out=one"])
    assert next(read_manifest(world / "one" / "suspicious.jsonl")).audio_filepath == str(world / "named.wav")


def test_nothing_is_overwritten_unasked(world, refused):
    arguments = ["manifest=m.jsonl", "out=out", "format=[json,textgrid]"]
    run("align", ["checkpoint=x", *arguments])
    before = (world / "out" / "alignments.jsonl").read_bytes()
    rows = read_rows(world / "m.jsonl")
    write_manifest(world / "m.jsonl", rows[:3])
    message = refused(*arguments)
    assert "out: holds suspicious.jsonl and 4 more already" in message and "overwrite=true" in message
    assert (world / "out" / "alignments.jsonl").read_bytes() == before
    run("align", ["checkpoint=x", *arguments, "overwrite=true"])
    assert (world / "out" / "alignments.jsonl").read_bytes() == b"".join(before.splitlines(keepends=True)[:3])


def test_one_recording(world, capsys):
    audio = write(world / "语音" / "a=b, (1).wav", speak("bad cab"))
    run("align", ["checkpoint=x", audio, "transcript=Bad, cab!"])
    assert capsys.readouterr().out == "a=b,_1 1 0.000 0.440 bad 1.0000\na=b,_1 1 0.640 0.440 cab 1.0000\n"
    (world / "what is said.txt").write_text("\ufeffBad\ncab.\n", "utf-8")
    run("align", ["checkpoint=x", audio, "transcript=what is said.txt", "format=json"])
    row = json.loads(capsys.readouterr().out)
    assert row["text"] == "bad cab" and [label["text"] for label in row["labels"]] == list("badcab")
    run("align", ["checkpoint=x", audio, "transcript=[bad] 'cab'", "format=[ctm,json,textgrid]", "out=out"])
    assert {path.name for path in (world / "out").iterdir()} == {
        "alignments.ctm", "alignments.jsonl", "suspicious.jsonl", "a=b,_1.TextGrid",
    }  # fmt: skip


def test_standard_input(world, capsys, monkeypatch):
    content = Path(write(world / "a.wav", speak("bad cab"))).read_bytes()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    run("align", ["checkpoint=x", "-", "transcript=[bad] cab"])
    assert [line.split()[2:5] for line in capsys.readouterr().out.splitlines()] == [
        ["0.000", "0.440", "bad"], ["0.640", "0.440", "cab"],
    ]  # fmt: skip


def test_what_cannot_be(world, refused):
    assert "Which audio? One at a time" in refused("transcript=a")
    assert "a.wav, b.wav: these are 2 audio files" in refused("a.wav", "b.wav", "transcript=a")
    assert "transcript: has to be given: what is said in a.wav" in refused("a.wav")
    assert "talk.txt: no such text file" in refused("a.wav", "transcript=talk.txt")
    (world / "latin.txt").write_bytes(b"\xe4")
    assert "latin.txt: cannot be read as a UTF-8 text file" in refused("a.wav", "transcript=latin.txt")
    assert "a.wav: no such audio file" in refused("a.wav", "transcript=a")
    assert "leave the audio file and transcript=… out" in refused("a.wav", "manifest=m.jsonl", "out=out")
    assert "out: has to be given with a manifest" in refused("manifest=m.jsonl")
    assert "format=cmt: no such format. Did you mean ctm?" in refused("manifest=m.jsonl", "out=out", "format=cmt")
    assert "format: which one?" in refused("manifest=m.jsonl", "out=out", "format=[]")
    assert "none.jsonl: no such manifest" in refused("manifest=none.jsonl", "out=out")
    assert "worst=-1: must be 0 or more" in refused("manifest=m.jsonl", "out=out", "worst=-1")
    assert not (world / "out").exists()
