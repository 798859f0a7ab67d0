"""What libsndfile does not open: other containers, by an ffmpeg on the PATH, and standard input."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from asr.errors import AudioError

STDIN = "-"
"""The path of standard input."""
CONTAINER_SUFFIXES = (".m4a", ".m4b", ".mp4", ".mov", ".webm", ".mkv", ".mka", ".aac", ".wma", ".amr", ".3gp", ".avi")
"""What is taken for audio in a folder, besides what libsndfile reads, in lower case."""
SIGNATURES = (
    (4, b"ftyp", "MP4"), (4, b"moov", "MP4"), (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska"), (0, b"#!AMR", "AMR"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA"), (0, b"\xff\xf1", "AAC"), (0, b"\xff\xf9", "AAC"),
    (8, b"AVI ", "AVI"), (0, b"FLV\x01", "FLV"), (0, b"\0\0\1\xba", "MPEG"),
)  # fmt: skip
"""Where such a file has which bytes. Only what has them is handed to ffmpeg, which reads play lists, too."""
CUT = ("partial file", "ended prematurely", "buffer exhausted")
"""What ffmpeg says of a file that breaks off; it exits with 0."""


def container(path: str | Path) -> str | None:
    """The name of the container, by its first bytes; `None` if it is none that ffmpeg is asked to read."""
    with open(path, "rb") as file:
        head = file.read(16)
    return next((name for at, signature, name in SIGNATURES if head[at:].startswith(signature)), None)


@contextmanager
def decode_container(path: str | Path, kind: str, name: str) -> Iterator[str]:
    """The first audio stream as a WAV of 16 bits, in a temporary file.

    Args:
        path: the file.
        kind: its format.
        name: what messages call it.

    Raises:
        AudioError: there is no ffmpeg, or it cannot decode the file.
    """
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise AudioError(
            f"{name}: is {kind}, which needs ffmpeg, and there is none on the PATH. Install it, or convert the file."
        )
    with NamedTemporaryFile(suffix=".wav") as copy:
        # `file:` and the list of protocols: no name and no content makes it open anything else
        source = ["-protocol_whitelist", "file", "-i", f"file:{os.path.abspath(path)}", "-map", "0:a:0"]
        target = ["-c:a", "pcm_s16le", "-rf64", "auto", "-f", "wav", "-y", copy.name]
        command = [ffmpeg, "-nostdin", "-v", "error", *source, *target]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        if done.returncode or not os.path.getsize(copy.name):
            raise AudioError(f"{name}: ffmpeg cannot decode it ({said[-1] if said else 'it says nothing'}).")
        if any(sign in line for line in said for sign in CUT):
            raise AudioError(f"{name}: cut short, as ffmpeg says. Fetch the file again, or leave it out.")
        yield copy.name


@contextmanager
def spool_stdin() -> Iterator[str]:
    """Standard input as a temporary file: formats other than WAV cannot be read without going back and forth.

    Raises:
        AudioError: nothing comes.
    """
    with NamedTemporaryFile() as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        if not os.path.getsize(copy.name):
            raise AudioError("standard input: nothing came.")
        yield copy.name
