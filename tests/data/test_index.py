import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from asr.data.index import ManifestIndex
from asr.data.loader import Manifests
from asr.data.manifest import read_manifest
from asr.data.needs import all_frames_needed
from asr.errors import DataError


def rows(*names):
    return [{"audio_filepath": f"{name}.wav", "text": name, "duration": 0.5 + k} for k, name in enumerate(names)]


def indexes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if "index" in path.name and path.is_file())


def test_equals_reading_the_manifest(tmp_path, manifest):
    path = manifest(tmp_path / "m.jsonl", *rows("a", "语音", "é"), {"audio_filepath": "d.wav", "x": [1]})
    with path.open("a") as file:
        file.write("\n\n" + '{"audio_filepath": "e.wav"}')
    index = ManifestIndex(path)
    expected = list(read_manifest(path))
    assert list(index) == expected and len(index) == 5
    assert [index[k] for k in (4, 0, 2, -1)] == [expected[k] for k in (4, 0, 2, -1)]
    np.testing.assert_array_equal(index.seconds, [0.5, 1.5, 2.5, np.nan, np.nan])
    assert index.rows["line"].tolist() == [1, 2, 3, 4, 7]


def test_is_kept_and_replaced_when_the_manifest_changes(tmp_path, manifest, monkeypatch):
    path = manifest(tmp_path / "m.jsonl", *rows("a", "b"))
    ManifestIndex(path)
    [kept] = indexes(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("asr.data.index._build", None)  # the second opening reads nothing anew
        assert [u.text for u in ManifestIndex(path)] == ["a", "b"]
    manifest(path, *rows("c", "d"))  # as many bytes
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert [u.text for u in ManifestIndex(path)] == ["c", "d"]
    [new] = indexes(tmp_path)
    assert new != kept
    manifest(path, *rows("c", "d", "e"))
    assert [u.text for u in ManifestIndex(path)] == ["c", "d", "e"]


def test_folder_that_cannot_be_written(tmp_path, manifest, monkeypatch):
    """The index goes into the user's cache; where that cannot be written either, it is built each time."""
    (tmp_path / "corpus").mkdir()
    path = manifest(tmp_path / "corpus" / "m.jsonl", *rows("a", "b"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    locked, real = [tmp_path / "corpus"], os.replace

    def replace(source, target):
        if any(Path(target).is_relative_to(folder) for folder in locked):
            raise PermissionError(13, "Permission denied", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)  # root may write anywhere, so the refusal is played
    assert len(ManifestIndex(path)) == 2
    assert [file.name for file in (tmp_path / "corpus").iterdir()] == ["m.jsonl"]  # no scraps
    [cached] = indexes(tmp_path / "cache")
    manifest(path, *rows("a", "b", "c"))
    assert len(ManifestIndex(path)) == 3
    assert len(indexes(tmp_path / "cache")) == 1 and not cached.exists()
    locked.append(tmp_path / "cache")
    manifest(path, *rows("a", "b", "c", "d"))
    assert [u.text for u in ManifestIndex(path)] == ["a", "b", "c", "d"]


def test_others_may_read_the_index(tmp_path, manifest):
    path = manifest(tmp_path / "m.jsonl", *rows("a"))
    ManifestIndex(path)
    [kept] = indexes(tmp_path)
    assert kept.stat().st_mode & 0o777 == path.stat().st_mode & 0o777


def test_damaged_index_is_built_anew(tmp_path, manifest):
    path = manifest(tmp_path / "m.jsonl", *rows("a", "b"))
    ManifestIndex(path)
    [kept] = indexes(tmp_path)
    for damage in (b"", b"\x00" * 500, kept.read_bytes()[:-10]):
        kept.write_bytes(damage)
        assert [u.text for u in ManifestIndex(path)] == ["a", "b"]


def test_same_id_twice(tmp_path, manifest):
    path = manifest(tmp_path / "m.jsonl", *rows("a", "b", "c"), *rows("b", "c"))
    with pytest.raises(DataError, match=r"m\.jsonl, lines (2 and 4|3 and 5): the same id, and 1 more"):
        ManifestIndex(path)
    segments = [row | {"offset": k} for k, row in enumerate(rows("a") * 3)]
    assert len(ManifestIndex(manifest(tmp_path / "n.jsonl", *segments))) == 3  # of one file, told apart by offset


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_manifest(tmp_path, content):
    (tmp_path / "m.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"m\.jsonl: the manifest is empty"):
        ManifestIndex(tmp_path / "m.jsonl")


def test_missing_and_broken_manifest(tmp_path, manifest):
    with pytest.raises(DataError, match=r"no\.jsonl: no such manifest"):
        ManifestIndex(tmp_path / "no.jsonl")
    path = manifest(tmp_path / "m.jsonl", *rows("a"))
    path.write_text(path.read_text() + "\n{\n")
    with pytest.raises(DataError, match=r"m\.jsonl, line 3: not JSON"):
        ManifestIndex(path)
    assert not indexes(tmp_path)


def test_pickles_as_a_path(tmp_path, manifest):
    path = manifest(tmp_path / "m.jsonl", *rows(*map(str, range(2000))))
    index = ManifestIndex(path)
    pickled = pickle.dumps(index)
    assert len(pickled) < 1000  # a worker gets the path, not the utterances
    copy = pickle.loads(pickled)
    assert copy[1234] == index[1234] and len(copy) == 2000


def test_several_manifests_are_one_sequence(tmp_path, manifest):
    one = manifest(tmp_path / "one.jsonl", *rows("a", "b"))
    two = manifest(tmp_path / "two.jsonl", *rows("c", "d", "e"))
    both = Manifests([str(one), str(two)])
    assert [u.text for u in both] == ["a", "b", "c", "d", "e"]
    assert [both[np.int64(k)].text for k in (1, 2, 4)] == ["b", "c", "e"]
    np.testing.assert_array_equal(both.seconds, [0.5, 1.5, 0.5, 1.5, 2.5])
    assert [u.text for u in pickle.loads(pickle.dumps(both))] == ["a", "b", "c", "d", "e"]
    with pytest.raises(IndexError):
        both[5]


def test_large_manifests_are_read_in_parts_by_several_processes(tmp_path, manifest, monkeypatch):
    content = [*rows(*map(str, range(50))), {"audio_filepath": "x.wav"}, *rows(*map(str, range(50, 90)))]
    path = manifest(tmp_path / "m.jsonl", *content)
    path.write_text(path.read_text().replace('{"audio_filepath": "7.wav"', '\n{"audio_filepath": "7.wav"'))
    expected = np.array(ManifestIndex(path).rows)
    monkeypatch.setattr("asr.data.index.PART", 300)
    monkeypatch.setattr("asr.data.parallel.processors", lambda: 3)
    for text in (path.read_text(), path.read_text().rstrip("\n")):
        path.write_text(text)
        for old in indexes(tmp_path):
            old.unlink()
        assert ManifestIndex(path).rows.tobytes() == expected.tobytes()
        expected["size"][-1] -= 1  # the last line break is gone
    lines = path.read_text().splitlines()
    for number in (1, 45, len(lines)):
        path.write_text("\n".join([*lines[: number - 1], "{", *lines[number:]]))
        with pytest.raises(DataError, match=rf"m\.jsonl, line {number}: not JSON"):
            ManifestIndex(path)
    path.write_text("\n".join([*lines, lines[0]]))
    with pytest.raises(DataError, match=rf"m\.jsonl, lines 1 and {len(lines) + 1}: the same id"):
        ManifestIndex(path)


def test_frames_needed_are_counted_once(tmp_path, manifest, monkeypatch):
    texts = ["", "ab", "aab", "a?", None, "bbbb"]
    path = manifest(tmp_path / "m.jsonl", *({"audio_filepath": f"{k}.wav", "text": t} for k, t in enumerate(texts)))
    asked = []

    def encode(text):
        asked.append(text)
        if "?" in text:
            raise DataError("no label for '?'")
        return [" ab".index(character) for character in text]

    index = ManifestIndex(path)
    monkeypatch.setattr("asr.data.needs.KEPT_FROM", len(texts))
    for name, times in (("one", 6), ("one", 6), ("other", 12), ("", 18), ("", 24)):
        needed = all_frames_needed([index], encode, name)
        assert needed.tolist() == [0, 2, 4, 0, 0, 7] and len(asked) == times
    monkeypatch.setattr("asr.data.needs.KEPT_FROM", len(texts) + 1)
    assert all_frames_needed([index, index], encode, "one").tolist() == 2 * [0, 2, 4, 0, 0, 7] and len(asked) == 36


def test_processes_that_open_a_manifest_together_build_one_index(tmp_path, manifest):
    path = manifest(tmp_path / "m.jsonl", *rows(*map(str, range(3000))))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(open_and_count, [path] * 4) == [3000] * 4
    assert [file.name.endswith("index.npy") for file in indexes(tmp_path)] == [True]


def open_and_count(path) -> int:
    return len(ManifestIndex(path))
