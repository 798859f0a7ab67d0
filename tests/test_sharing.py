"""Bundles as zips and from the Hugging Face Hub; those that are not what they should be are refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from asr.bundle import load_pipeline
from asr.errors import CheckpointError
from asr.sharing import locate
from tests.test_bundle import bundle, outputs, write_ckpt

__all__ = ["bundle"]


def zipped(bundle: Path, path: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(p for p in bundle.rglob("*") if p.is_file()):
            archive.write(file, Path(inside, file.relative_to(bundle)))
    return path


@pytest.mark.parametrize("inside", ["", "bundle", "an4/first/bundle"])
def test_a_zip_is_a_bundle(bundle, tmp_path, inside):
    path = zipped(bundle, tmp_path / "语音 (1).zip", inside)
    assert torch.equal(outputs(load_pipeline(path)), outputs(load_pipeline(bundle)))


def add(name: str, content: bytes = b"x", mode: int = 0, **attributes):
    def change(archive: zipfile.ZipFile) -> None:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        entry.compress_type = attributes.get("compress_type", zipfile.ZIP_DEFLATED)
        archive.writestr(entry, content)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (add("../escaped"), r"refuses '\.\./escaped': it leads outside"),
        (add("tokenizer/../../escaped"), "it leads outside"),
        (add("/tmp/escaped"), "it leads outside"),
        (add("..\\escaped"), "it leads outside"),
        (add("C:/escaped"), "it leads outside"),
        (add("lm/link", b"/etc/passwd", stat.S_IFLNK | 0o777), r"refuses 'lm/link': it is a link"),
        (add("lm/pipe", mode=stat.S_IFIFO | 0o666), "it is a link or device"),
        (add("bomb", bytes(1 << 28)), "refuses to unpack 5 files of 268 MB"),
        (add("odd", compress_type=zipfile.ZIP_LZMA), "packed by a method other than deflate"),
        (add("config.yaml"), r"cannot be unpacked .*File exists"),
        (add("config.yaml/deeper"), "cannot be unpacked"),
        (add("other/model.safetensors"), "holds 2 bundles"),
        (lambda archive: [add(f"{k}", b"")(archive) for k in range(2000)], "refuses to unpack 2,004 files"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_zips_are_refused(bundle, tmp_path, change, says):
    path = zipped(bundle, tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as archive:
        change(archive)
    with pytest.raises(CheckpointError, match=rf"a\.zip: .*{says}"):
        load_pipeline(path)
    assert not any(p.name == "escaped" for folder in (tmp_path, Path("/tmp")) for p in folder.iterdir())


@pytest.mark.parametrize("size", [0, 10, 0.5, -1])
def test_damaged_zips_are_refused(bundle, tmp_path, size):
    path = zipped(bundle, tmp_path / "a.zip")
    content = path.read_bytes()
    path.write_bytes(content[: round(size * len(content)) if 0 < size < 1 else int(size)])
    with pytest.raises(CheckpointError, match=r"a\.zip: cannot be unpacked"):
        load_pipeline(path)


def test_sizes_that_lie(bundle, tmp_path):
    """Entries that promise to be small, and are not."""
    path = zipped(bundle, tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as archive:
        add("bomb", bytes(1 << 26))(archive)
    content = bytearray(path.read_bytes())
    where = content.rindex(b"PK\x01\x02")
    assert content[where + 46 : where + 50] == b"bomb"
    content[where + 24 : where + 28] = struct.pack("<I", 1000)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.zip: cannot be unpacked"):
        load_pipeline(path)


def test_encrypted_zips(bundle, tmp_path):
    path = zipped(bundle, tmp_path / "a.zip")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is encrypted\. Zip the bundle without a password"):
        load_pipeline(path)


def test_zips_without_a_bundle(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("pytorch_model.bin", b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(CheckpointError, match=r"a\.zip: holds no bundles"):
        load_pipeline(tmp_path / "a.zip")
    shutil.copy(write_ckpt(tmp_path / "a.ckpt"), tmp_path / "b.zip")  # torch writes zips, too
    with pytest.raises(CheckpointError, match=r"b\.zip: holds no bundles"):
        load_pipeline(tmp_path / "b.zip")


# --- the Hub


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's interface as fetching a model needs, with one model: you/digits."""

    folder: Path
    asked: list[str]
    commit = "c" * 40

    def do_HEAD(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path, files = self.path.split("?")[0], [p for p in self.folder.rglob("*") if p.is_file()]
        names = {p.relative_to(self.folder).as_posix(): p for p in files}
        info = {"id": "you/digits", "sha": self.commit, "siblings": [{"rfilename": name} for name in names]}
        tree = [{"type": "file", "path": name, "size": p.stat().st_size, "oid": "0" * 40} for name, p in names.items()]
        if path.startswith("/api/models/you/digits/tree/"):
            self.answer(json.dumps(tree).encode())
        elif path.startswith("/api/models/you/digits/revision/") and path.rsplit("/", 1)[1] in ("main", self.commit):
            self.answer(json.dumps(info).encode())
        elif path.startswith(f"/you/digits/resolve/{self.commit}/"):
            self.answer(names[path.split(self.commit + "/")[1]].read_bytes())
        else:
            code = "RevisionNotFound" if "/you/digits/" in path else "RepoNotFound"
            self.answer(b"{}", 404, {"X-Error-Code": code})

    do_GET = do_HEAD

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        own = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": self.commit}
        for name, value in (own | {"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_arguments) -> None:
        pass


@pytest.fixture
def hub(bundle: Path, tmp_path: Path) -> Iterator[type[Hub]]:
    pytest.importorskip("huggingface_hub")
    (bundle / "training.log").write_text("not part of a bundle")
    (bundle / "lm").mkdir()
    (bundle / "lm" / "words.txt").write_text("one\n")
    handler = type("Handler", (Hub,), {"folder": bundle, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield handler
        server.shutdown()


def fetched(name: str, home: Path, url: str, **environment: str) -> str:
    """What a new process says that a model is located at, or that it cannot be."""
    code = (
        "import sys\nfrom asr.sharing import locate\nfrom asr.errors import CheckpointError\n"
        "try: print(locate(sys.argv[1]))\nexcept CheckpointError as error: print('error:', error)"
    )
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)} | environment
    command = [sys.executable, "-c", code, name]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | settings)
    return done.stdout.strip()


def test_a_model_of_the_hub(hub, bundle, tmp_path):
    home = tmp_path / "home"
    path = fetched("hf://you/digits", home, hub.url)
    files = {p.relative_to(path).as_posix() for p in Path(path).rglob("*") if p.is_file()}
    assert files == {"config.yaml", "model.safetensors", "README.md", "tokenizer/tokenizer.json", "lm/words.txt"}
    assert torch.equal(outputs(load_pipeline(path)), outputs(load_pipeline(bundle)))
    assert fetched("you/digits", home, hub.url) == path
    assert fetched(f"hf://you/digits@{hub.commit}", home, hub.url) == path
    before = len(hub.asked)
    assert fetched("hf://you/digits", home, hub.url, HF_HUB_OFFLINE="1") == path
    assert len(hub.asked) == before, "asked the Hub in spite of HF_HUB_OFFLINE"
    assert sum("GET" in line and "model.safetensors" in line for line in hub.asked) == 1, "fetched twice"
    assert fetched("hf://me/digits", home, hub.url).startswith("error: checkpoint=me/digits: no such path, and the Hub")
    assert "error: " in fetched("hf://you/digits@v9", home, hub.url)
    assert "error: " in fetched("hf://me/digits", home, hub.url, HF_HUB_OFFLINE="1")


def test_what_is_no_model_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("asr.sharing.fetch", lambda name, revision: pytest.fail(f"asked the Hub for {name}"))
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("runs/demmo", "digits", "a/b/c", "./a", "/nowhere/b", "../a", "a/b c"):
        assert locate(name) == Path(name)


def test_without_huggingface_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    for name in ("hf://you/digits", "you/digits"):
        with pytest.raises(
            CheckpointError, match=r"you/digits: there is no such file.*pip install 'asr-pipeline\[hub\]'"
        ):
            load_pipeline(name)
