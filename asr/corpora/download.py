"""Fetching official archives: resumable, checksummed, unpacked safely; only when `corpus.download=true` asks for it."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from asr.corpora.base import progress_bar
from asr.errors import DataError

OPENSLR = "https://www.openslr.org/resources"
ATTEMPTS = 3
"""Tries in a row that bring no byte, before giving up."""
PAUSE = 1.0
"""Seconds between two tries."""


@dataclass(frozen=True)
class Archive:
    """An archive at its official address."""

    url: str
    size: str
    """About how much is to be fetched, for messages."""
    checksum: str | None = None
    """MD5 or SHA-256 as hexadecimal digits; `None` where the publisher names none: then only the length is checked,
    and the archive's own checksum when it is unpacked."""


def locate(
    root: str | Path | None,
    find: Callable[[Path], Path | None],
    expected: str,
    archives: Sequence[Archive] = (),
    download: bool = False,
) -> Path:
    """Return the corpus folder that `find` sees at `root`, after fetching the archives into `root` if asked to.

    Raises:
        DataError: it is not there; the message says what is expected and that it can be fetched.
    """
    sizes = ", ".join(f"{archive.url} ({archive.size})" for archive in archives)
    offer = f" corpus.download=true fetches it into corpus.root: {sizes}." if archives else ""
    if root is None:
        raise DataError(f"corpus.root is not set: corpus.root=DIR names {expected}.{offer}")
    folder = Path(os.path.abspath(os.path.expanduser(root)))
    found = find(folder) if folder.is_dir() else None
    if found is None and download:
        for archive in archives:
            packed = fetch(archive.url, folder, archive.checksum)
            unpack(packed, folder)
        found = find(folder)
        for archive in archives if found is not None else ():
            (folder / archive.url.rsplit("/", 1)[-1]).unlink()
    if found is None:
        what = "does not hold the corpus" if folder.is_dir() else "no such folder"
        raise DataError(f"corpus.root={root}: {what}. Expected: {expected}.{'' if download else offer}")
    return found


def fetch(url: str, folder: Path, checksum: str | None = None) -> Path:
    """Download a file into a folder; what an earlier, broken-off call left in `NAME.partial` is continued.

    Args:
        url: http or https.
        folder: where to; made if missing.
        checksum: MD5 or SHA-256, told apart by their length.

    Raises:
        DataError: no such file on the server, no connection, disk full, or a wrong checksum.
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url}: only http and https addresses can be fetched.")
    target = folder / url.rsplit("/", 1)[-1]
    partial = target.with_name(target.name + ".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            partial.touch()
    except OSError as error:
        raise DataError(f"{folder}: cannot be written to ({error.strerror}). Choose another corpus.root.") from None
    if not target.exists():
        _download(url, partial)
        partial.replace(target)
    if checksum and (found := file_checksum(target, checksum)) != checksum.lower():
        target.unlink()
        raise DataError(
            f"{url}: wrong checksum: {found} instead of {checksum}. The file was deleted; run the command again. "
            "If it stays wrong, the publisher has changed the file, or somebody else has."
        )
    return target


def _download(url: str, partial: Path) -> None:
    from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    with progress_bar(DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(partial.stem, total=None)
        fruitless, problem = 0, ""
        while fruitless < ATTEMPTS:
            before = partial.stat().st_size
            try:
                if _continue(url, partial, lambda done, total: bar.update(task, completed=done, total=total)):
                    return
                problem = "the connection was cut"
            except urllib.error.HTTPError as error:
                problem = f"the server says {error.code} {error.reason}"
                if 400 <= error.code < 500:
                    raise DataError(f"{url}: {problem}. Is the address right?") from None
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise DataError(f"{partial}: the disk is full. Make room; the download will go on.") from None
                problem = str(error) or type(error).__name__
            fruitless = 0 if partial.stat().st_size > before else fruitless + 1
            time.sleep(PAUSE)
    done = partial.stat().st_size
    raise DataError(f"{url}: {problem}, after {done:,} bytes. Run the command again: it goes on from there.")


def _continue(url: str, partial: Path, show: Callable[[int, int | None], None]) -> bool:
    """Append what is missing to `partial`; return whether it is complete."""
    done = partial.stat().st_size
    request = urllib.request.Request(url, headers={"User-Agent": "asr-pipeline"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{done}":
            return True
        partial.write_bytes(b"")  # longer than the file: not a piece of it
        return False
    with response:
        continued = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        done = done if continued else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        if length and int(length) > shutil.disk_usage(partial.parent).free:
            raise DataError(f"{partial.parent}: too little room: {int(length):,} bytes are needed.")
        with partial.open("ab" if continued else "wb") as file:
            while block := response.read(1 << 20):
                file.write(block)
                done += len(block)
                show(done, total)
    return total is None or done == total


def file_checksum(path: Path, like: str) -> str:
    """The SHA-256 of a file if `like` is one, else its MD5."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256" if len(like) == 64 else "md5").hexdigest()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive into a folder; existing files stay as they are.

    Members are unpacked beside the folder's contents first, so that breaking off leaves no half corpus.

    Raises:
        DataError: the archive is damaged, or wants to write outside the folder.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as staging:
            with tarfile.open(archive) as tar:
                tar.extractall(staging, filter="data")
            _merge(Path(staging), folder)
    except tarfile.FilterError as error:
        raise DataError(f"{archive}: unsafe archive, nothing was unpacked ({error}). Delete it.") from None
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: a damaged archive ({error}). Delete it and fetch it again.") from None
    except OSError as error:
        raise DataError(f"{archive}: cannot be unpacked into {folder} ({error.strerror or error}).") from None


def _merge(source: Path, target: Path) -> None:
    for item in source.iterdir():
        place = target / item.name
        if item.is_dir() and place.is_dir():
            _merge(item, place)
        elif not place.exists():
            item.rename(place)
