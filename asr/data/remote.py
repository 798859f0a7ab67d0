"""Files at URLs, by fsspec: fetched whole, one after the other, into a folder of bounded size.

`ASR_CACHE` names the folder (default: `asr/files` in the user's cache), `ASR_CACHE_GB` how much it may hold (default
100): where shards take more, those that were opened longest ago go. It belongs on a disk of the node's own. Credentials
and options of S3, GCS and others come from fsspec's own configuration.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from functools import lru_cache
from pathlib import Path

from asr.errors import ConfigError, DataError

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.ASCII)
TRIES = 4
"""How often a transfer is tried, waiting 1, 2, 4 seconds in between."""


def is_url(path: str | os.PathLike) -> bool:
    return bool(URL.match(os.fspath(path)))


def beside(file: str | Path, path: str) -> str:
    """A path that is relative to the folder of a file, made absolute; either may be a URL."""
    if is_url(path):
        return path
    folder = _folder(os.fspath(file))
    return f"{folder}/{path}" if is_url(folder) else os.path.abspath(os.path.join(folder, path))


@lru_cache(maxsize=64)
def _folder(file: str) -> str:
    return file.rsplit("/", 1)[0] if is_url(file) else os.path.dirname(file)


def fetch(url: str, changing: bool = False) -> Path:
    """The local copy of a file.

    Args:
        url: of any kind that fsspec knows.
        changing: whether to ask if it has changed since it was fetched; shards never do.

    Raises:
        FileNotFoundError: there is none.
        ConfigError: fsspec, or what it needs for such URLs, is not installed.
        DataError: it cannot be transferred.
    """
    version = str(_try(url, lambda files, path: files.checksum(path))) if changing else ""
    target = _place(url, version)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(target.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the other processes of the node wait for the same copy
            partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
            try:
                if not target.exists():
                    _try(url, lambda files, path: files.get_file(path, str(partial)))
                    os.replace(partial, target)
                    _make_room(target)
            finally:
                partial.unlink(missing_ok=True)
                fcntl.flock(lock, fcntl.LOCK_UN)  # a process forked meanwhile has it open, too
    with contextlib.suppress(FileNotFoundError):  # another process may be making room
        os.utime(target)
    return target


def forget(url: str) -> None:
    """Remove the copy of a file that does not change, so that it is fetched anew."""
    _place(url).unlink(missing_ok=True)


def _place(url: str, version: str = "") -> Path:
    user_cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "asr" / "files"
    name = url.rsplit("/", 1)[-1]
    return (
        Path(os.environ.get("ASR_CACHE", user_cache)) / hashlib.sha1((url + version).encode()).hexdigest()[:16] / name
    )


def _try(url: str, act):
    try:
        import fsspec

        files, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{url}: {error}. fsspec reads URLs: pip install 'asr-pipeline[fsspec]', and for S3 s3fs, for GCS gcsfs."
        ) from None
    for tried in range(1, TRIES + 1):
        try:
            return act(files, path)
        except FileNotFoundError:
            raise
        except Exception as error:  # every kind of file system has errors of its own
            if tried == TRIES:
                raise DataError(
                    f"{url}: cannot be fetched ({error or type(error).__name__}), {TRIES} tries."
                ) from error
            time.sleep(2 ** (tried - 1))


def _make_room(new: Path) -> None:
    """Remove the shards that were opened longest ago, but not the new one, until what is left fits."""
    most = float(os.environ.get("ASR_CACHE_GB", 100)) * 1e9
    found = []
    for path in new.parent.parent.glob("*/*.tar"):
        with contextlib.suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    held = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if held > most and path != new:
            path.unlink(missing_ok=True)
            held -= size
