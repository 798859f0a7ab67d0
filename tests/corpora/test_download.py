"""Downloads, against a server on this machine."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from asr.corpora import An4, LibriSpeech, download
from asr.errors import DataError


class Server(ThreadingHTTPServer):
    """Serves `files` with ranges; cuts the connection after `cut` bytes as many times as `cuts` says."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.cut, self.cuts, self.knows_ranges = 0, 0, True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server: Server = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        data = server.files.get(self.path)
        if data is None:
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.knows_ranges else 0
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        part = data[start:]
        if server.cuts:
            server.cuts -= 1
            part = part[: server.cut]
        self.wfile.write(part)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def pack(*folders, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for folder in folders:
            tar.add(folder, folder.name)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def an4_archive(tmp_path, sound, lines) -> bytes:
    root = tmp_path / "source/an4"
    sound(root / "wav/an4_clstk/fash/an1.sph", 1.0, format="NIST", subtype="PCM_16")
    lines(root / "etc/an4_train.fileids", "an4_clstk/fash/an1")
    lines(root / "etc/an4_train.transcription", "<s> YES </s> (an1)")
    return pack(root)


def test_an4_is_fetched_when_asked_for_and_only_then(server, an4_archive, tmp_path):
    server.files["/an4_sphere.tar.gz"] = an4_archive
    options = {"root": str(tmp_path / "data"), "base_url": server.url}
    with pytest.raises(DataError, match=r"corpus.download=true fetches it .*an4_sphere.tar.gz \(64 MB\)"):
        An4(**options).prepare(tmp_path / "out")
    assert not server.ranges and not (tmp_path / "data").exists()
    report = An4(**options, download=True, checksum=md5(an4_archive)).prepare(tmp_path / "out")
    assert report.kept["train"].utterances == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["an4"]
    An4(**options, download=True).prepare(tmp_path / "out")  # there already: nothing is fetched
    An4(**options).prepare(tmp_path / "out")  # how it came there is no other corpus
    assert len(server.ranges) == 1


def test_a_cut_connection_is_continued(server, tmp_path):
    data = bytes(range(256)) * 5000
    server.files["/a.tar.gz"], server.cut, server.cuts = data, 300_000, 2
    assert download.fetch(f"{server.url}/a.tar.gz", tmp_path, md5(data)).read_bytes() == data
    assert server.ranges == [None, "bytes=300000-", "bytes=600000-"]


def test_a_later_call_continues_what_an_earlier_one_left(server, tmp_path):
    data = bytes(range(256)) * 100
    server.files["/a.tar.gz"], server.cut, server.cuts = data, 0, 99
    (tmp_path / "a.tar.gz.partial").write_bytes(data[:1000])
    with pytest.raises(DataError, match=r"after 1,000 bytes. Run the command again: it goes on from there"):
        download.fetch(f"{server.url}/a.tar.gz", tmp_path)
    server.cuts = 0
    assert download.fetch(f"{server.url}/a.tar.gz", tmp_path).read_bytes() == data
    assert set(server.ranges) == {"bytes=1000-"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize("left", [b"whole", b"something else that is longer than the file"])
def test_what_was_left_is_whole_or_no_part_of_it(server, tmp_path, left):
    server.files["/a"] = b"whole"
    (tmp_path / "a.partial").write_bytes(left)
    assert download.fetch(f"{server.url}/a", tmp_path).read_bytes() == b"whole"


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.files["/a"], server.knows_ranges = b"0123456789", False
    (tmp_path / "a.partial").write_bytes(b"0123")
    assert download.fetch(f"{server.url}/a", tmp_path).read_bytes() == b"0123456789"


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    server.files["/a"] = b"data"
    with pytest.raises(DataError, match=f"wrong checksum: {md5(b'data')} instead of {'0' * 32}"):
        download.fetch(f"{server.url}/a", tmp_path, "0" * 32)
    assert not list(tmp_path.iterdir())
    assert download.fetch(f"{server.url}/a", tmp_path, hashlib.sha256(b"data").hexdigest())


def test_errors_of_the_server_and_the_address(server, tmp_path):
    with pytest.raises(DataError, match="404"):
        download.fetch(f"{server.url}/none", tmp_path)
    with pytest.raises(DataError, match="only http"):
        download.fetch("file:///etc/passwd", tmp_path)
    with pytest.raises(DataError, match="Run the command again"):
        download.fetch("http://127.0.0.1:1/a", tmp_path)


@pytest.mark.parametrize("name", ["../evil", "a/../../evil"])
def test_a_hostile_archive_writes_nothing(tmp_path, name):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.tar.gz").write_bytes(pack(**{"good": b"x", name: b"evil"}))
    with pytest.raises(DataError, match="unsafe archive, nothing was unpacked"):
        download.unpack(folder / "a.tar.gz", folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "a.tar.gz"]


def test_unpacking_replaces_no_file_and_leaves_no_root_path(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/mine").write_text("mine")
    archive = tmp_path / "b.tar.gz"
    archive.write_bytes(pack(**{"a/mine": b"theirs", "a/new": b"new", "/rooted": b"inside"}))
    download.unpack(archive, tmp_path)
    contents = {path.name: path.read_text() for path in tmp_path.rglob("*") if path.is_file() and path != archive}
    assert contents == {"mine": "mine", "new": "new", "rooted": "inside"}


def test_a_damaged_archive_is_said_to_be_damaged(tmp_path):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(pack(a=bytes(range(256)) * 1000)[:-200])
    with pytest.raises(DataError, match="damaged archive"):
        download.unpack(archive, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_librispeech_fetches_the_missing_subsets(server, tmp_path, sound, lines):
    checksums = {}
    for subset in ("dev-clean-2", "train-clean-5"):
        root = tmp_path / subset / "LibriSpeech"
        sound(root / subset / "1/2/1-2-0000.flac")
        lines(root / subset / "1/2/1-2.trans.txt", "1-2-0000 HELLO")
        server.files[f"/31/{subset}.tar.gz"] = pack(root)
        checksums[subset] = md5(server.files[f"/31/{subset}.tar.gz"])
    options = {"root": str(tmp_path / "data"), "download": True, "base_url": server.url}
    with pytest.raises(DataError, match=r"corpus.subsets=\[NAME,…\] of dev-clean \(337 MB\)"):
        LibriSpeech(**options).prepare(tmp_path / "out")
    with pytest.raises(DataError, match="wrong checksum"):
        LibriSpeech(**options, subsets=["dev-clean-2"]).prepare(tmp_path / "out")
    with pytest.raises(DataError, match=r"no subset 'dev-clear'. Did you mean dev-clean"):
        LibriSpeech(**options, subsets=["dev-clear"]).prepare(tmp_path / "out")
    report = LibriSpeech(**options, subsets=list(checksums), checksums=checksums).prepare(tmp_path / "out")
    assert set(report.manifests) == {"dev-clean-2", "train-clean-5"}
    # the folder with the subsets has one already
    there = shutil.copytree(tmp_path / "dev-clean-2" / "LibriSpeech", tmp_path / "there")
    options |= {"root": str(there), "subsets": list(checksums), "checksums": checksums}
    for _ in range(2):  # the second time, nothing is fetched
        fetched = len(server.ranges)
        assert set(LibriSpeech(**options).prepare(tmp_path / "new").manifests) == set(checksums)
    assert len(server.ranges) == fetched and not [*there.glob("*.tar.gz")]
