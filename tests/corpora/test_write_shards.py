import hashlib
import json
import subprocess
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from asr.corpora.base import Report, write_corpus
from asr.corpora.shards import write_shards
from asr.data.audio import read_audio
from asr.data.index import ManifestIndex
from asr.data.shards import parse_member
from asr.errors import AudioError, ConfigError, DataError
from asr.types import Utterance


def tone(path, seconds=0.5, rate=16000, channels=1, **options):
    samples = np.random.default_rng(len(path.name)).uniform(-0.5, 0.5, (round(seconds * rate), channels))
    soundfile.write(path, samples, rate, **options)
    return str(path)


@pytest.fixture
def prepared(tmp_path) -> Report:
    """Files of many kinds, and segments of them."""
    audio = tmp_path / "語 音"
    audio.mkdir()
    kinds = [
        Utterance(tone(audio / "a.wav"), "one", id="a", speaker="x", extra={"accent": "é"}),
        Utterance(tone(audio / "b.wav", subtype="PCM_24", channels=2), "two", id="b.b/1"),
        Utterance(tone(audio / "c.flac", 2.0, 8000), "three", id="c"),
        Utterance(tone(audio / "d.flac", 2.0), "four", offset=0.5, duration=0.75, id="d"),
        Utterance(tone(audio / "e.wav", subtype="ULAW"), "five"),
        Utterance(tone(audio / "f.ogg"), "six", id="f"),
        Utterance(tone(audio / "g.mp3", 1.0), "seven", id="g"),
    ]
    test = [replace(kinds[0], text="eight"), *(replace(kinds[3], id=str(k), offset=k / 10) for k in range(12))]
    return write_corpus({}, {"train": kinds, "test": test}, tmp_path / "files")


def content(report: Report, split: str) -> list[tuple]:
    """What a manifest says and what is heard, without where it lies."""
    return [
        (replace(u, audio_filepath="", offset=0.0), read_audio(u.audio_filepath, 16000, u.offset, u.duration).tolist())
        for u in ManifestIndex(report.manifests[split])
    ]


def test_the_same_utterances_and_samples_in_the_same_order(prepared, tmp_path):
    report = write_shards(prepared, tmp_path / "shards", size=0.05)
    for split in ("train", "test"):
        assert content(report, split) == content(prepared, split)
    assert (report.corpus, report.kept, report.dropped) == (prepared.corpus, prepared.kept, prepared.dropped)
    assert report == Report.load(tmp_path / "shards")
    again = write_shards(report, tmp_path / "again")  # from shards to shards
    assert content(again, "test") == content(prepared, "test")


def test_shards_are_plain_tars_with_rows_and_sums(prepared, tmp_path):
    folder = tmp_path / "shards"
    report = write_shards(prepared, folder, size=0.05)
    shards = sorted((folder / "test").iterdir())
    assert len(shards) > 3 and [path.name for path in shards[:2]] == ["000000.tar", "000001.tar"]
    assert all(path.stat().st_size <= 50_000 for path in shards)
    rows, named = [], [parse_member(u.audio_filepath) for u in ManifestIndex(report.manifests["test"])]
    for path in shards:
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for audio, row in zip(members[::2], members[1::2], strict=True):
                assert audio.name.split(".")[0] == row.name.split(".")[0] and audio.name.endswith(".flac")
                member = named[len(rows)]
                assert (member.shard, member.start, member.size) == (str(path), audio.offset_data, audio.size)
                rows.append(json.load(tar.extractfile(row)))
    lines = [json.loads(line) for line in report.manifests["test"].read_text().splitlines()]
    assert rows == [{key: value for key, value in line.items() if key != "audio_filepath"} for line in lines]
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)
    listed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == {str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix in (".tar", ".jsonl", ".json")}


def test_same_bytes_each_time(prepared, tmp_path):
    sums = [hashlib.sha256() for _ in range(2)]
    for k, found in enumerate(sums):
        write_shards(prepared, tmp_path / f"{k}")
        found.update((tmp_path / f"{k}" / "SHA256SUMS").read_bytes())
    assert sums[0].digest() == sums[1].digest()


def test_compressed_files_are_not_compressed_again(prepared, tmp_path):
    report = write_shards(prepared, tmp_path / "flac")
    stored = {u.id: parse_member(u.audio_filepath) for u in ManifestIndex(report.manifests["train"])}
    for name in ("c.flac", "f.ogg", "g.mp3"):
        original = (tmp_path / "語 音" / name).read_bytes()
        member = stored[name[0]]
        with open(member.shard, "rb") as shard:
            shard.seek(member.start)
            assert shard.read(member.size) == original


def test_what_flac_cannot_hold_is_kept_as_it_is(tmp_path):
    random = np.random.default_rng(0)
    loud = 1.5 * random.uniform(-1, 1, 16000).astype(np.float32)
    many = random.integers(-9999, 9999, (16000, 12), np.int16)
    soundfile.write(tmp_path / "loud.wav", loud, 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "many.wav", many, 16000)
    utterances = [Utterance(str(tmp_path / name), "a", id=name) for name in ("loud.wav", "many.wav")]
    prepared = write_corpus({}, {"train": utterances}, tmp_path / "files")
    assert content(write_shards(prepared, tmp_path / "shards"), "train") == content(prepared, "train")


def test_opus(prepared, tmp_path):
    report = write_shards(prepared, tmp_path / "opus", format="opus")
    for found, expected in zip(content(report, "test"), content(prepared, "test"), strict=True):
        assert found[0] == expected[0] and len(found[1]) == len(expected[1])
    with tarfile.open(tmp_path / "opus" / "train" / "000000.tar") as tar:
        assert [name.split(".")[1] for name in tar.getnames()[::2]] == ["ogg"] * 6 + ["mp3"]


def test_opus_has_few_rates(tmp_path):
    source = tone(tmp_path / "a.wav", 1.0, 22050, channels=2)
    prepared = write_corpus({}, {"train": [Utterance(source, "a", id="a")]}, tmp_path / "files")
    report = write_shards(prepared, tmp_path / "opus", format="opus")
    [utterance] = ManifestIndex(report.manifests["train"])
    assert len(read_audio(utterance.audio_filepath, 16000, 0, utterance.duration, channel=1)) == 16000


def test_nothing_is_overwritten_or_left_half_written(prepared, tmp_path):
    (tmp_path / "shards").mkdir()
    with pytest.raises(DataError, match=r"shards: is there already\. Nothing was written"):
        write_shards(prepared, tmp_path / "shards")
    assert not list((tmp_path / "shards").iterdir())
    with pytest.raises(ConfigError, match="shard_format=wav: must be flac or opus"):
        write_shards(prepared, tmp_path / "new", format="wav")
    (tmp_path / "語 音" / "d.flac").write_bytes(b"no audio")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(AudioError, match=r"d\.flac: cannot be read as audio"):
        write_shards(prepared, tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == before
