"""Corpora from miniatures of their official layouts."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
import soundfile

from asr.corpora import Aishell, An4, CommonVoice, Kaldi, LibriSpeech
from asr.data.manifest import read_manifest
from asr.errors import DataError


def read(report, split):
    return list(read_manifest(report.manifests[split]))


@pytest.fixture
def an4(tmp_path, sound, lines):
    root = tmp_path / "an4"
    sound(root / "wav/an4_clstk/fash/an251-fash-b.sph", 1.0, format="NIST", subtype="PCM_16", endian="BIG")
    sound(root / "wav/an4_clstk/fash/cen1-fash-b.flac", 0.5)
    raw = root / "wav/an4test_clstk/fcaw/an406-fcaw-b.raw"
    raw.parent.mkdir(parents=True)
    raw.write_bytes(np.arange(-8000, 8000, dtype=">i2").tobytes())
    lines(root / "etc/an4_train.fileids", "an4_clstk/fash/an251-fash-b", "an4_clstk/fash/cen1-fash-b")
    lines(
        root / "etc/an4_train.transcription",
        "<s> YES </s> (an251-fash-b)",
        "<s> A B </s> (cen1-fash-b) ",
        "<s> NO </s> (unlisted)",
    )
    lines(root / "etc/an4_test.fileids", "an4test_clstk/fcaw/an406-fcaw-b", "an4test_clstk/fcaw/untold")
    lines(root / "etc/an4_test.transcription", "RUBOUT G M (an406-fcaw-b)")
    return root


def test_an4_reads_sphere_and_big_endian_raw(an4, tmp_path):
    report = An4(root=str(an4)).prepare(tmp_path / "out")
    assert [(u.id, u.text, u.speaker, u.duration) for u in read(report, "train")] == [
        ("an251-fash-b", "YES", "fash", 1.0),
        ("cen1-fash-b", "A B", "fash", 0.5),
    ]
    (test,) = read(report, "test")
    assert (test.text, test.speaker, test.duration) == ("RUBOUT G M", "fcaw", 1.0)
    samples, rate = soundfile.read(test.audio_filepath, dtype="int16")
    assert rate == 16000 and (samples == np.arange(-8000, 8000)).all()
    assert test.audio_filepath == str(tmp_path / "out/audio/an4test_clstk/fcaw/an406-fcaw-b.flac")
    assert report.dropped["train"]["missing audio"].utterances == 1
    assert report.dropped["test"]["missing audio"].utterances == 1


def test_an4_takes_the_folder_above_and_the_one_part_that_is_there(an4, tmp_path):
    for path in (an4 / "etc").glob("an4_train.*"):
        path.unlink()
    assert set(An4(root=str(tmp_path)).prepare(tmp_path / "out").manifests) == {"test"}


def test_an4_says_what_is_expected_and_that_it_can_be_fetched(tmp_path):
    for root, found in (
        (None, "corpus.root is not set"),
        (str(tmp_path / "no"), "no such folder"),
        (str(tmp_path), ""),
    ):
        with pytest.raises(DataError, match=rf"{found}.*an4_train.fileids.*corpus.download=true.*64 MB"):
            An4(root=root).prepare(tmp_path / "out")


def test_an4_names_the_broken_line(an4, tmp_path, lines):
    lines(an4 / "etc/an4_train.transcription", "<s> YES </s> (an251-fash-b)", "<s> NO </s>")
    with pytest.raises(DataError, match=r"an4_train.transcription, line 2"):
        An4(root=str(an4)).prepare(tmp_path / "out")


def test_the_real_an4(an4_root, tmp_path):
    report = An4(root=str(an4_root)).prepare(tmp_path / "out")
    assert report.kept["train"].utterances == 948 and report.kept["train"].hours == pytest.approx(0.707, abs=1e-3)
    assert len({u.speaker for u in read(report, "train")}) == 74 and not report.dropped["train"]


@pytest.fixture
def librispeech(tmp_path, sound, lines):
    root = tmp_path / "LibriSpeech"
    for subset, speaker in (("train-clean-5", "14"), ("dev-clean-2", "84")):
        chapter = root / subset / speaker / "208"
        for number in (0, 1):
            sound(chapter / f"{speaker}-208-000{number}.flac")
        lines(chapter / f"{speaker}-208.trans.txt", f"{speaker}-208-0000 IT'S FINE", f"{speaker}-208-0002 LOST")
    lines(root / "SPEAKERS.TXT", ";ID |SEX| SUBSET", "14   | F | train-clean-5  | 25.03 | Kristin LeMoine")
    return root


@pytest.mark.parametrize("above", [True, False])
def test_librispeech_makes_a_manifest_for_each_subset(librispeech, tmp_path, above):
    report = LibriSpeech(root=str(tmp_path if above else librispeech)).prepare(tmp_path / "out")
    assert set(report.manifests) == {"train-clean-5", "dev-clean-2"}
    (first,) = read(report, "train-clean-5")
    assert (first.id, first.text, first.speaker) == ("14-208-0000", "IT'S FINE", "14")
    assert first.extra == {"gender": "F"} and first.lang == "en"
    reasons = {reason: tally.utterances for reason, tally in report.dropped["dev-clean-2"].items()}
    assert reasons == {"missing text": 1, "missing audio": 1}


def test_librispeech_takes_the_subsets_asked_for(librispeech, tmp_path):
    report = LibriSpeech(root=str(tmp_path), subsets=["dev-clean-2"]).prepare(tmp_path / "out")
    assert set(report.manifests) == {"dev-clean-2"}
    with pytest.raises(DataError, match=r"no such folder.*corpus.download=true corpus.subsets=.*dev-clean \(337 MB\)"):
        LibriSpeech(root=str(tmp_path / "none")).prepare(tmp_path / "other")
    with pytest.raises(DataError, match=r"subset 'test-clean'.*corpus.download=true.*346 MB"):
        LibriSpeech(root=str(tmp_path), subsets=["test-clean"]).prepare(tmp_path / "other")


def test_aishell_unpacks_speakers_and_joins_characters(tmp_path, sound, lines):
    root = tmp_path / "data_aishell"
    lines(
        root / "transcript/aishell_transcript_v0.8.txt",
        "BAC009S0002W0122 而 对 楼市",
        "BAC009S0002W0123 没有 声音",
        "BAC009S0764W0121 甚至 出现",
    )
    sound(root / "wav/train/S0002/BAC009S0002W0122.wav")
    packed = sound(tmp_path / "packed/test/S0764/BAC009S0764W0121.wav")
    with tarfile.open(root / "wav/S0764.tar.gz", "w:gz") as tar:
        tar.add(packed.parents[1], "test")
    for out in ("first", "second"):
        report = Aishell(root=str(tmp_path)).prepare(tmp_path / out)
        assert [(u.text, u.speaker, u.lang) for u in read(report, "train")] == [("而对楼市", "S0002", "zh")]
        assert [(u.id, u.text) for u in read(report, "test")] == [("BAC009S0764W0121", "甚至出现")]
        assert report.dropped["train"]["missing audio"].utterances == 1
    assert (root / "wav/S0764.tar.gz").exists()


def test_commonvoice_reads_its_unquoted_tables(tmp_path, sound, lines):
    root = tmp_path / "cy"
    header = "client_id\tpath\tsentence\tage\tgender\taccents\tlocale"
    sound(root / "clips/common_voice_cy_1.mp3", 1.0, rate=48000)
    lines(root / "train.tsv", header, 'abc\tcommon_voice_cy_1.mp3\t"Bore da\ttwenties\tfemale\t\tcy')
    lines(root / "validated.tsv", header, "abc\tcommon_voice_cy_1\tBore da\t\t\t\tcy", "x\tgone.mp3\tNa\t\t\t\tcy")
    report = CommonVoice(root=str(root)).prepare(tmp_path / "out")
    assert set(report.manifests) == {"train"}
    (first,) = read(report, "train")
    assert (first.id, first.text, first.speaker, first.lang) == ("common_voice_cy_1", '"Bore da', "abc", "cy")
    assert first.extra == {"age": "twenties", "gender": "female"} and first.duration == pytest.approx(1, abs=0.1)
    report = CommonVoice(root=str(root), splits=["validated"]).prepare(tmp_path / "validated")
    assert report.dropped["validated"]["missing audio"].utterances == 1
    with pytest.raises(DataError, match=r"has no tran.tsv. Did you mean train"):
        CommonVoice(root=str(root), splits=["tran"]).prepare(tmp_path / "other")


@pytest.fixture
def kaldi(tmp_path, sound, lines):
    data = tmp_path / "corpus/train"
    sound(tmp_path / "corpus/wav/long.wav", 3.0)
    lines(data / "wav.scp", "rec1 wav/long.wav")
    lines(data / "segments", "u1 rec1 0.5 1.25", "u2 rec1 2.0 -1", "u3 rec2 0 1")
    lines(data / "text", "u1 ONE TWO", "u2 THREE", "u3 FOUR", "u4 FIVE")
    lines(data / "utt2spk", "u1 s1", "u2 s2")
    lines(data / "spk2age", "s1 37", "s2 40")
    lines(data / "utt2age", "u2 41")
    lines(data / "spk2lang", "s3 de")
    lines(data / "utt2lang", "u2 fr")
    lines(data / "spk2utt", "s1 u1", "s2 u2")
    return data


def test_kaldi_reads_segments_and_maps(kaldi, tmp_path):
    report = Kaldi(root=str(kaldi), lang="en").prepare(tmp_path / "out")
    first, second = read(report, "train")
    assert (first.id, first.text, first.speaker, first.offset, first.duration) == ("u1", "ONE TWO", "s1", 0.5, 0.75)
    assert (first.extra, first.lang, second.lang, second.duration) == ({"age": "37"}, "en", "fr", 1.0)
    assert second.extra == {"age": "41"}, "what an utterance says is nearer than what its speaker does"
    assert report.dropped["train"]["missing audio"].utterances == 2


def test_kaldi_takes_a_folder_of_data_directories(kaldi, tmp_path):
    assert set(Kaldi(root=str(kaldi.parent)).prepare(tmp_path / "a").manifests) == {"train"}
    assert set(Kaldi(root=str(kaldi), split="dev").prepare(tmp_path / "b").manifests) == {"dev"}
    with pytest.raises(DataError, match=r"test has no wav.scp"):
        Kaldi(root=str(kaldi.parent), splits=["test"]).prepare(tmp_path / "c")


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("wav.scp", "rec1 sph2pipe -f wav a.sph |", "commands are not run"),
        ("wav.scp", "rec1 raw.ark:123", "lies in an archive"),
        ("segments", "u1 rec1 0.5", "segments, line 1"),
        ("segments", "u1 rec1 1.5 0.5", "segments, line 1"),
        ("text", "u1 A\nu1 B", "text, line 2: 'u1' occurs a second time"),
    ],
)
def test_kaldi_errors_name_file_and_line(kaldi, tmp_path, lines, file, line, message):
    lines(kaldi / file, line)
    with pytest.raises(DataError, match=message):
        Kaldi(root=str(kaldi)).prepare(tmp_path / "out")


def test_the_real_speechocean(speechocean_root, tmp_path, lines):
    for name in ("wav.scp", "text"):  # a part of it: decoding all takes 10 s
        lines(tmp_path / "train" / name, *(speechocean_root / "train" / name).read_text().splitlines()[:100])
    for name in ("utt2spk", "spk2age", "spk2gender"):
        (tmp_path / "train" / name).write_text((speechocean_root / "train" / name).read_text())
    corpus = Kaldi(root=str(tmp_path / "train"), audio_root=str(speechocean_root))
    first = read(corpus.prepare(tmp_path / "out"), "train")[0]
    assert (first.id, first.text, first.speaker) == ("000010011", "WE CALL IT BEAR", "0001")
    assert first.extra == {"age": "6", "gender": "m"}
