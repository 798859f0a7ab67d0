import json
import re

import pytest

from asr.data.manifest import parse_line, read_manifest, write_manifest
from asr.errors import DataError
from asr.types import Utterance


def test_round_trip(tmp_path):
    utterances = [
        Utterance(str(tmp_path / "wav" / "a.wav"), "早上好 é", 1.5, 0.0, "a", "s1", "zh", {"age": 30, "tags": ["x"]}),
        Utterance("/elsewhere/b.flac", "", 0.25, 2.125, "b", None, None, {"snr": None}),
        Utterance(str(tmp_path / "c.wav"), id="c"),
    ]
    path = tmp_path / "m.jsonl"
    assert write_manifest(path, utterances) == 3
    assert list(read_manifest(path)) == utterances
    assert [file.name for file in tmp_path.iterdir()] == ["m.jsonl"]
    first, second, _ = map(json.loads, path.read_text("utf-8").splitlines())
    assert first["audio_filepath"] == "wav/a.wav" and second["audio_filepath"] == "/elsewhere/b.flac"
    assert "早上好" in path.read_text("utf-8")


def test_moves_with_its_folder(tmp_path):
    write_manifest(tmp_path / "one" / "m.jsonl", [Utterance(str(tmp_path / "one" / "a.wav"), "a")])
    (tmp_path / "one").rename(tmp_path / "two")
    [utterance] = read_manifest(tmp_path / "two" / "m.jsonl")
    assert utterance.audio_filepath == str(tmp_path / "two" / "a.wav")


def test_audio_is_found_from_any_folder(tmp_path, monkeypatch):
    write_manifest(tmp_path / "one" / "m.jsonl", [Utterance(str(tmp_path / "one" / "a.wav"), "a")])
    monkeypatch.chdir(tmp_path)
    utterances = list(read_manifest("one/m.jsonl"))
    write_manifest("two/m.jsonl", utterances)
    assert list(read_manifest("two/m.jsonl")) == utterances == list(read_manifest(tmp_path / "one" / "m.jsonl"))


def test_written_whole_or_not_at_all(tmp_path):
    write_manifest(tmp_path / "m.jsonl", [Utterance("/a.wav", "old")])

    def broken():
        yield Utterance("/b.wav", "new")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_manifest(tmp_path / "m.jsonl", broken())
    assert [u.text for u in read_manifest(tmp_path / "m.jsonl")] == ["old"]
    assert [file.name for file in tmp_path.iterdir()] == ["m.jsonl"]


def test_nemo_line(tmp_path):
    line = '{"audio_filepath": "wavs/../x.wav", "duration": 3, "text": "hi", "offset": 1.5, "pred_text": "ho"}'
    utterance = parse_line(line, tmp_path / "m.jsonl", 1)
    assert utterance.audio_filepath == str(tmp_path / "x.wav")
    assert (utterance.text, utterance.duration, utterance.offset) == ("hi", 3.0, 1.5)
    assert utterance.extra == {"pred_text": "ho"}
    assert utterance.get("pred_text") == "ho" and utterance.get("duration") == 3.0 and utterance.get("age") is None


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"audio_filepath": "wav/a.wav"}, "wav/a"),
        ({"audio_filepath": "wav/a.wav", "offset": 0}, "wav/a@0.000"),
        ({"audio_filepath": "/x/a.b.flac", "offset": 1.25}, "/x/a.b@1.250"),
        ({"audio_filepath": "a.wav", "id": 7, "offset": 2}, "7"),
    ],
)
def test_ids_are_given_or_derived(tmp_path, row, expected):
    assert parse_line(json.dumps(row), tmp_path / "m.jsonl", 1).id == expected


def test_blank_lines_and_line_ends(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(b'\n{"audio_filepath": "a.wav"}\r\n  \n\n{"audio_filepath": "b.wav"}')
    assert [u.id for u in read_manifest(tmp_path / "m.jsonl")] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"audio_filepath": "a.wav"', "not JSON"),
        ("\ufffd", "not JSON"),
        ("[1]", "a JSON object is expected, found list"),
        ('{"text": "a"}', "'audio_filepath' is missing"),
        ('{"audio_filepath": "a.wav", "text": 7}', "'text' must be a string, found 7"),
        ('{"audio_filepath": "a.wav", "duration": "1"}', "'duration' must be a number of seconds, found '1'"),
        ('{"audio_filepath": "a.wav", "duration": -1}', "'duration' must be"),
        ('{"audio_filepath": "a.wav", "offset": NaN}', "'offset' must be"),
        ('{"audio_filepath": "a.wav", "offset": true}', "'offset' must be"),
    ],
)
def test_broken_line_is_named(tmp_path, line, message):
    (tmp_path / "m.jsonl").write_text(f'{{"audio_filepath": "z.wav"}}\n\n{line}\n')
    where = re.escape(f"{tmp_path}/m.jsonl, line 3: ")
    with pytest.raises(DataError, match=f"{where}.*{re.escape(message)}"):
        list(read_manifest(tmp_path / "m.jsonl"))


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "m.jsonl").write_bytes('{"audio_filepath": "a.wav", "text": "é"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"line 1: not JSON"):
        list(read_manifest(tmp_path / "m.jsonl"))


def test_missing_manifest(tmp_path):
    with pytest.raises(DataError, match=r"no\.jsonl: no such manifest"):
        list(read_manifest(tmp_path / "no.jsonl"))
