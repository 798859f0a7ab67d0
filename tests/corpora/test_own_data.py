"""One's own recordings: tables, folders, Lhotse's cuts; and every shipped config."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from asr.corpora import Folder, Lhotse, Table
from asr.data.manifest import read_manifest
from asr.errors import ConfigError, DataError
from asr.plugins import instantiate

CONFIGS = sorted((Path(__file__).parents[2] / "conf/corpus").glob("*.yaml"))


def read(report, split="train"):
    return list(read_manifest(report.manifests[split]))


def test_table_with_speaker_column_and_other_columns_kept(tmp_path, sound, lines):
    sound(tmp_path / "clips/7_a.wav", 0.5, rate=8000)
    sound(tmp_path / "clips/3_b.wav", 0.4, rate=8000)
    path = lines(
        tmp_path / "digits.csv",
        "\ufefffile,word,who,age,duration",
        "clips/7_a.wav,seven,theo,31,x",
        'clips/3_b.wav,"three, please",lucas,,x',
        "clips/gone.wav,one,lucas,,x",
        ",one,lucas,,x",
    )
    report = Table(path=str(path), columns={"audio": "file", "text": "word", "speaker": "who"}).prepare(tmp_path / "o")
    first, second = read(report)
    assert (first.id, first.text, first.speaker, first.duration) == ("clips/7_a", "seven", "theo", 0.5)
    assert first.extra == {"age": "31", "table_duration": "x"} and second.extra == {"table_duration": "x"}
    assert second.text == "three, please"
    assert report.dropped["train"]["missing audio"].utterances == 2


def test_table_makes_a_manifest_for_each_value_of_the_split_column(tmp_path, sound, lines):
    sound(tmp_path / "audio/long.wav", 3.0)
    path = lines(
        tmp_path / "t.tsv",
        "audio\ttext\tname\tfrom\tfor\tset",
        'long.wav\t"one\tu1\t0.5\t1\ttrain',
        "long.wav\ttwo\tu2\t2\t\ttest",
    )
    columns = {"id": "name", "offset": "from", "duration": "for", "split": "set"}
    report = Table(path=str(path), columns=columns, audio_root=str(tmp_path / "audio")).prepare(tmp_path / "out")
    (train,), (test,) = read(report, "train"), read(report, "test")
    assert (train.id, train.text, train.offset, train.duration) == ("u1", '"one', 0.5, 1.0)
    assert (test.id, test.offset, test.duration) == ("u2", 2.0, 1.0)


def test_table_reads_json_lines_and_semicolons(tmp_path, sound, lines):
    sound(tmp_path / "a.wav")
    rows = [{"audio_filepath": "a.wav", "text": "hi", "age": 7, "tags": ["x"]}]
    path = lines(tmp_path / "t.jsonl", *map(json.dumps, rows))
    (first,) = read(
        Table(path=str(path), columns={"audio": "audio_filepath"}, split="dev").prepare(tmp_path / "o"), "dev"
    )
    assert (first.text, first.extra) == ("hi", {"age": 7, "tags": ["x"]})
    path = lines(tmp_path / "t.csv", "audio;text;speaker", "a.wav;hi, there;me")
    (first,) = read(Table(path=str(path)).prepare(tmp_path / "o2"))
    assert (first.text, first.speaker) == ("hi, there", "me")


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (["audio,text,speeker", "a.wav,hi,me"], {"speaker": "speaker"}, "no column 'speaker'.*Did you mean speeker"),
        (["audio,words", "a.wav,hi"], {}, r"t.csv: has no column 'text' \(corpus.columns.text=…\)"),
        (["audio,text", "a.wav,hi", "a.wav,hi, there"], {}, "t.csv, line 3: 3 cells, but the header has 2"),
        (["audio,text,at", "a.wav,hi,soon"], {"offset": "at"}, "t.csv, line 2: 'offset' must be a number of seconds"),
        (["audio,text,set", "a.wav,hi,"], {"split": "set"}, "t.csv, line 2: the split column 'set' is empty"),
        (["audio,text"], {}, "holds no rows"),
        (["audio,text", 'a.wav,"hi'], {}, "near line 2"),
        (['{"audio": "a.wav", "text": "hi"}', "{"], {}, "t.csv, line 2: not JSON"),
    ],
)
def test_table_errors_name_file_line_and_column(tmp_path, sound, lines, rows, columns, message):
    sound(tmp_path / "a.wav")
    path = lines(tmp_path / "t.csv", *rows)
    with pytest.raises(DataError, match=message):
        Table(path=str(path), columns=columns).prepare(tmp_path / "out")


def test_table_that_is_not_utf8_or_asks_for_an_unknown_role(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("audio,text\na.wav,caf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        Table(path=str(path)).prepare(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"no 'speeker'. Did you mean speaker"):
        Table(path=str(path), columns={"speeker": "x"}).prepare(tmp_path / "out")
    with pytest.raises(DataError, match=r"corpus.path=FILE"):
        Table().prepare(tmp_path / "out")


def test_folder_pairs_audio_with_its_text(tmp_path, sound, lines):
    root = tmp_path / "talks"
    sound(root / "ann/a, (1).wav")
    lines(root / "ann/a, (1).txt", "hello", "world")
    sound(root / "ann/untold.flac")
    lines(root / "bob/lost.txt", "hello")
    report = Folder(root=str(root), speaker="parent", split="own").prepare(tmp_path / "out")
    (first,) = read(report, "own")
    assert (first.id, first.text, first.speaker) == ("ann/a, (1)", "hello world", "ann")
    assert {why: tally.utterances for why, tally in report.dropped["own"].items()} == {
        "missing text": 1,
        "missing audio": 1,
    }
    sound(root / "ann/a, (1).flac")
    with pytest.raises(DataError, match=r"more than once: ann/a, \(1\)"):
        Folder(root=str(root)).prepare(tmp_path / "other")


def test_folders_with_links_and_capitals(tmp_path, sound, lines):
    sound(tmp_path / "elsewhere/A.WAV")
    lines(tmp_path / "elsewhere/A.TXT", "hello")
    (tmp_path / "talks").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "talks/ann")
    os.symlink(tmp_path / "talks", tmp_path / "elsewhere/back")
    report = Folder(root=str(tmp_path / "talks")).prepare(tmp_path / "out")
    assert [(utterance.id, utterance.text) for utterance in read(report, "train")] == [("ann/A", "hello")]


def test_lhotse_cuts(tmp_path, sound):
    lhotse = pytest.importorskip("lhotse")
    recording = lhotse.Recording.from_file(sound(tmp_path / "a.wav", 3.0), recording_id="rec")
    stereo = lhotse.Recording(
        "st", [lhotse.audio.AudioSource("file", [0, 1], str(tmp_path / "a.wav"))], 16000, 48000, 3.0, [0, 1]
    )

    def cut(name, recording=recording, supervisions=1, start=0.5):
        spoken = lhotse.SupervisionSegment(
            "s", "rec", 0.0, 1.0, text="HELLO", speaker="ann", language="en", gender="f", custom={"age": 7}
        )
        return lhotse.MonoCut(name, start, 1.0, 0, supervisions=[spoken] * supervisions, recording=recording)

    cuts = [cut("one"), cut("two", supervisions=2), cut("stereo", stereo), cut("fast", recording.perturb_speed(0.9))]
    path = tmp_path / "cuts.jsonl.gz"
    lhotse.CutSet.from_cuts(cuts).to_file(path)
    report = Lhotse(path={"dev": str(path)}).prepare(tmp_path / "out")
    (first,) = read(report, "dev")
    assert (first.id, first.text, first.speaker, first.lang) == ("one", "HELLO", "ann", "en")
    assert (first.offset, first.duration, first.extra) == (0.5, 1.0, {"age": 7, "gender": "f"})
    assert sum(tally.utterances for tally in report.dropped["dev"].values()) == 3


def test_without_lhotse_the_way_out_is_named(tmp_path, monkeypatch):
    (tmp_path / "cuts.jsonl").touch()
    monkeypatch.setitem(sys.modules, "lhotse", None)
    with pytest.raises(ConfigError, match="pip install lhotse"):
        Lhotse(path=str(tmp_path / "cuts.jsonl")).prepare(tmp_path / "out")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_name_every_option_of_their_class(path):
    config = yaml.safe_load(path.read_text())
    corpus = instantiate(config, "corpus")
    if hasattr(corpus, "arguments"):
        assert config.keys() - {"_target_"} == set(vars(corpus))


def test_corpora_import_no_torch():
    import subprocess

    code = "import sys, asr.corpora; sys.exit(bool({'torch', 'lightning', 'lhotse', 'soundfile'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
