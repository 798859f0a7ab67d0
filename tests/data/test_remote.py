import fcntl
import functools
import http.server
import os
import threading

import fsspec
import numpy as np
import pytest

from asr.corpora.shards import find_shards
from asr.data import remote
from asr.data.audio import read_audio
from asr.data.index import ManifestIndex
from asr.data.module import Fit, SpeechData
from asr.data.shards import parse_member
from asr.errors import AudioError, ConfigError, DataError

FIT = Fit(lambda text: [1] * len(text), lambda text: [], lambda seconds: (seconds * 100).astype(int), 16000)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path):
    """The shards' folder behind HTTP: its URL, and the paths asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append((self.command, self.path))

    handler = functools.partial(Handler, directory=str(tmp_path / "shards"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
        running.shutdown()


@pytest.fixture
def memory(both, tmp_path):
    """The shards in fsspec's file system in memory."""
    files = fsspec.filesystem("memory")
    files.put(str(tmp_path / "shards"), "/corpus", recursive=True)
    yield "memory://corpus"
    files.rm("/corpus", recursive=True)


def batches(manifest, **options) -> list:
    data = SpeechData(str(manifest), validation_speakers=0, **{"workers": 0, "batch_seconds": 2.0, **options})
    data.prepare(FIT, 1)
    return list(data.train_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_training_over_http_equals_that_on_disk(both, server, workers):
    url, asked = server
    expected = batches(both[1], buffer=10)
    found = batches(f"{url}/train.jsonl", buffer=10, workers=workers)
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert one.indices.tolist() == two.indices.tolist() and one.waveforms.equal(two.waveforms)
    shards = [path for command, path in asked if command == "GET" and path.endswith(".tar")]
    assert len(shards) == len(set(shards)) == len(list((both[1].parent / "train").iterdir()))  # each once, and whole


def test_a_url_of_any_kind_is_a_manifest(both, memory):
    found, expected = ManifestIndex(f"{memory}/train.jsonl"), ManifestIndex(both[1])
    assert [(u.id, u.text, u.duration) for u in found] == [(u.id, u.text, u.duration) for u in expected]
    assert found[7].audio_filepath.startswith("memory://corpus/train/000001.tar#")
    for k in (0, 30, 59):
        one, two = (read_audio(index[k].audio_filepath, 16000) for index in (found, expected))
        np.testing.assert_array_equal(one, two)
    assert find_shards(memory) == {"train": "memory://corpus/train.jsonl"}
    assert find_shards(str(both[1].parent)) == {"train": str(both[1])} and find_shards(str(both[0].parent)) is None


def test_a_manifest_that_has_changed_is_fetched_anew(both, memory):
    index = ManifestIndex(f"{memory}/train.jsonl")
    first = both[1].read_bytes().splitlines(keepends=True)[0]
    with fsspec.open(f"{memory}/train.jsonl", "wb") as file:
        file.write(first)
    assert len(index) == 60 and len(ManifestIndex(f"{memory}/train.jsonl")) == 1


def test_a_stream_is_the_default_at_urls(both, memory):
    assert SpeechData(f"{memory}/train.jsonl", validation_speakers=0).buffer == 10_000
    assert SpeechData(str(both[1]), validation_speakers=0).buffer is None


def test_a_damaged_copy_is_fetched_anew(both, memory, cache):
    path = ManifestIndex(f"{memory}/train.jsonl")[0].audio_filepath
    expected = read_audio(path, 16000)
    [copy] = cache.glob("*/000000.tar")
    copy.write_bytes(bytes(copy.stat().st_size))
    np.testing.assert_array_equal(read_audio(path, 16000), expected)
    with fsspec.open(parse_member(path).shard, "wb") as shard:
        shard.write(bytes(10_000))
    copy.write_bytes(b"")
    with pytest.raises(AudioError, match=r"memory://corpus/train/000000\.tar#512.* damaged"):
        read_audio(path, 16000)


def test_missing_and_failing(both, memory, monkeypatch):
    with pytest.raises(DataError, match=r"memory://corpus/no\.jsonl: no such manifest"):
        ManifestIndex(f"{memory}/no.jsonl")
    with pytest.raises(DataError, match=r"memory://nowhere/report\.json: no such report"):
        find_shards("memory://nowhere/")
    with pytest.raises(AudioError, match=r"memory://corpus/train/7\.tar: no such shard"):
        read_audio("memory://corpus/train/7.tar#512+10:00000000", 16000)
    with pytest.raises(ConfigError, match=r"nosuch://a/b.* pip install 'asr-pipeline\[fsspec\]'"):
        remote.fetch("nosuch://a/b")
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/a\.tar: cannot be fetched .* 4 tries"):
        remote.fetch("http://127.0.0.1:9/a.tar")


def test_a_transfer_is_tried_again_and_never_left_half(both, memory, cache, monkeypatch):
    files = fsspec.filesystem("memory")
    real, tries = type(files).get_file, []

    def get_file(self, source, target, **options):
        tries.append(source)
        if len(tries) < 3:
            with open(target, "wb") as half:
                half.write(b"half")
            raise ConnectionError("reset by peer")
        real(self, source, target, **options)

    monkeypatch.setattr(type(files), "get_file", get_file)
    copy = remote.fetch(f"{memory}/train/000000.tar")
    assert len(tries) == 3 and copy.read_bytes() == (both[1].parent / "train" / "000000.tar").read_bytes()
    assert not list(cache.rglob("*.partial"))


def test_a_process_forked_in_a_transfer_holds_up_nobody(both, memory, monkeypatch):
    reader, writer = os.pipe()
    transfer = remote._try

    def fork(url, act):
        if not os.fork():  # as a data worker, with all that is open
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        return transfer(url, act)

    monkeypatch.setattr(remote, "_try", fork)
    path = remote.fetch(f"{memory}/train/000000.tar")
    with path.with_name(f"{path.name}.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(writer)
    os.wait()


def test_what_the_cache_has_removed_takes_no_room(both, memory, cache, monkeypatch):
    monkeypatch.setenv("ASR_CACHE_GB", "0")  # room for the newest
    utterances = list(ManifestIndex(f"{memory}/train.jsonl"))
    for utterance in utterances:
        read_audio(utterance.audio_filepath, 16000)
    assert len({parse_member(utterance.audio_filepath).shard for utterance in utterances}) > 1
    held = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert not any(path.startswith(str(cache)) for path in held)


def test_the_cache_is_bounded(both, memory, cache, monkeypatch):
    size = (both[1].parent / "train" / "000000.tar").stat().st_size
    monkeypatch.setenv("ASR_CACHE_GB", str(3.5 * size / 1e9))
    manifest = remote.fetch(f"{memory}/train.jsonl", changing=True)
    for k, name in enumerate(["000000", "000001", "000000", "000002", "000003"]):
        os.utime(remote.fetch(f"{memory}/train/{name}.tar"), (k, k))
    assert sorted(path.name for path in cache.glob("*/*.tar")) == ["000000.tar", "000002.tar", "000003.tar"]
    assert manifest.exists()
