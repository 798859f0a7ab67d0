"""Audio in tar shards: each utterance a FLAC or OGG file, found by the bytes that a manifest names.

A shard is a plain tar with the layout of webdataset: `000000042.flac` beside `000000042.json`, its line of the
manifest. The manifest names the bytes of the audio and their CRC-32: `train/000000.tar#1536+48233:8f3a21bc`. So all
that reads manifests reads shards, the sampler goes on as with files, and what is read is known to be whole.

The libraries for shards were tried on 999 utterances in 9 shards, 2 ranks with 2 workers each. webdataset 1.0.2: 62
steps on one rank, 64 on the other; it has no state to resume from. litdata 0.2.76: resumes exactly, but with 62 and 63
steps, or by dropping 7 utterances. lhotse 1.33 Shar: exact and equal, but it resumes by reading again all that it has
read, in 0.13 s after 138 batches and 4.8 s after 5641.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

from asr.data import remote
from asr.errors import AudioError

MEMBER = re.compile(r"(.+\.tar)#(\d+)\+(\d+):([0-9a-f]{8})", re.DOTALL)
BLOCK = tarfile.BLOCKSIZE


class Member(NamedTuple):
    """A file in a shard."""

    shard: str
    """A path or URL."""
    start: int
    """The byte at which its content begins."""
    size: int
    """Bytes."""
    checksum: int
    """CRC-32 of the content."""

    def __str__(self) -> str:
        return f"{self.shard}#{self.start}+{self.size}:{self.checksum:08x}"


def parse_member(path: str | os.PathLike) -> Member | None:
    """The member of a shard that an audio path names; `None` if it is the path of a file."""
    found = MEMBER.fullmatch(os.fspath(path))
    return Member(found[1], int(found[2]), int(found[3]), int(found[4], 16)) if found else None


def read_member(member: Member) -> io.BytesIO:
    """The content of a member.

    Raises:
        AudioError: the shard is missing or cut short, or other bytes stand there.
    """
    content = _read(member)
    if zlib.crc32(content) != member.checksum and remote.is_url(member.shard):
        remote.forget(member.shard)  # the copy may be what is damaged
        content = _read(member)
    if len(content) < member.size:
        raise AudioError(
            f"{member}: the shard is cut short: {len(content)} of the {member.size} bytes are there. "
            "Copy the shard again, or pass over it with data.failures=skip."
        )
    if zlib.crc32(content) != member.checksum:
        raise AudioError(
            f"{member}: the shard is damaged, or not the one that the manifest was written for (CRC-32 differs). "
            "Compare it with SHA256SUMS and copy it again, or pass over it with data.failures=skip."
        )
    return io.BytesIO(content)


def _read(member: Member) -> bytes:
    try:
        if remote.is_url(member.shard):
            return _read_copy(member)
        shard = _open(member.shard)  # held: the cache drops it when two threads open it at once
        return os.pread(shard.fileno(), member.size, member.start)
    except FileNotFoundError:
        raise AudioError(
            f"{member.shard}: no such shard. Copy it there, or pass over it with data.failures=skip."
        ) from None
    except OSError as error:
        if remote.is_url(member.shard):  # the disk of the copies is full, or broken
            raise
        _open.cache_clear()
        raise AudioError(
            f"{member.shard}: cannot be read ({error.strerror}). Pass over it with data.failures=skip."
        ) from None


def _read_copy(member: Member) -> bytes:
    """From the copy of a shard at a URL; it is not kept open, or it would take room when it is removed."""
    while True:
        copy = remote.fetch(member.shard)
        try:
            with open(copy, "rb", buffering=0) as shard:
                return os.pread(shard.fileno(), member.size, member.start)
        except FileNotFoundError:  # another process has made room meanwhile
            continue


@lru_cache(maxsize=64)
def _open(shard: str) -> IO[bytes]:
    return open(shard, "rb", buffering=0)


class ShardWriter:
    """Writes numbered shards of about a size into a folder.

    Args:
        folder: is made.
        size: of a shard, in bytes; a member that would pass it goes into the next one.
    """

    def __init__(self, folder: Path, size: int):
        folder.mkdir(parents=True)
        self.folder, self.size = folder, size
        self.members = 0
        self.sums: dict[str, str] = {}
        """SHA-256 of the shards that are complete, by name."""
        self._file: IO[bytes] | None = None

    def add(self, audio: bytes, suffix: str, row: dict[str, Any]) -> Member:
        """Add an utterance and its row of the manifest."""
        text = json.dumps(row, ensure_ascii=False).encode()
        if self._file is not None and self._file.tell() + len(audio) + len(text) + 4 * BLOCK > self.size:
            self.close()
        if self._file is None:
            path = self.folder / f"{len(self.sums):06d}.tar"
            self._file, self._sum = path.open("xb"), hashlib.sha256()
        shard, key = self._file.name, f"{self.members:09d}"
        self.members += 1
        start = self._write(key + suffix, audio)
        self._write(key + ".json", text)
        return Member(shard, start, len(audio), zlib.crc32(audio))

    def _write(self, name: str, content: bytes) -> int:
        """Append a member; returns where its content begins."""
        assert self._file is not None
        header = tarfile.TarInfo(name)
        header.size = len(content)
        start = self._file.tell() + BLOCK
        self._append(header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK))
        return start

    def _append(self, content: bytes) -> None:
        assert self._file is not None
        self._file.write(content)
        self._sum.update(content)

    def close(self) -> None:
        """End the shard that is open."""
        if self._file is not None:
            self._append(bytes(2 * BLOCK))
            self._file.close()
            self.sums[Path(self._file.name).name] = self._sum.hexdigest()
            self._file = None
