"""Where a checkpoint lies: a path, a zip that is unpacked, or a model of the Hugging Face Hub that is fetched."""

from __future__ import annotations

import atexit
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from asr.errors import CheckpointError

HUB = re.compile(r"(hf:/{1,2})?([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")
"""`hf://user/name`, `user/name`, either with `@revision`; `Path` makes one slash of two."""
FILES = ["config.yaml", "model.safetensors", "README.md", "tokenizer/*", "lm/*"]
"""What a bundle consists of, as patterns of the Hub; `*` also crosses folders."""
MOST_BYTES, MOST_FILES, MOST_RATIO = 1 << 34, 1000, 100
"""What a zip may unpack to: weights hardly shrink, text and sparse tables tenfold."""


def locate(checkpoint: str | Path) -> Path:
    """The local path of a checkpoint.

    Args:
        checkpoint: a path, or `hf://user/name`, with `@revision` if it is not the newest. A bare `user/name` is looked
            up on the Hub if no folder `user` is there.

    Raises:
        CheckpointError: a zip is damaged or unsafe, or a model cannot be fetched.
    """
    path, found = Path(checkpoint), HUB.fullmatch(str(checkpoint))
    if path.suffix == ".zip" and path.is_file():
        return unpack(path)
    if found and (found[1] or not (path.exists() or path.parent.exists())):
        return fetch(found[2], found[3])
    return path


def fetch(name: str, revision: str | None = None) -> Path:
    """The folder in the Hub's cache that a model was fetched to; `HF_HOME` and `HF_HUB_OFFLINE` hold as everywhere.

    Args:
        name: `user/name`.
        revision: a branch, tag or commit.

    Raises:
        CheckpointError: it is not there, not to be reached, or huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import EntryNotFoundError, HFValidationError
    except ImportError:
        raise CheckpointError(
            f"checkpoint={name}: there is no such file or folder. If it is a model of the Hugging Face Hub: "
            "pip install 'asr-pipeline[hub]'"
        ) from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES, library_name="asr-pipeline"))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"checkpoint={name}: no such path, and the Hub does not give it: {reason}") from None


def unpack(path: Path) -> Path:
    """The bundle in a zip, unpacked to a temporary folder that lasts as long as the process.

    Raises:
        CheckpointError: it is damaged, holds no bundle or several, or what no bundle holds: links, paths that lead
            outside, far more than its size promises.
    """
    folder = Path(tempfile.mkdtemp(prefix="asr-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # not before: language models are mapped into memory
    try:
        with zipfile.ZipFile(path) as archive:
            _check(archive, path)
            for entry in archive.infolist():
                if not entry.is_dir():
                    place = folder / entry.filename
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(entry) as source, place.open("xb") as target:
                        shutil.copyfileobj(source, target)  # reads no more than the size that was checked
    # NotImplementedError: zipfile's, for a newer version of the format
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be unpacked ({error}). Fetch it again.") from None
    found = [weights.parent for weights in folder.rglob("model.safetensors")]
    if len(found) != 1:
        raise CheckpointError(f"{path}: holds {len(found) or 'no'} bundles. Zip the bundle's folder, and nothing else.")
    return found[0]


def _check(archive: zipfile.ZipFile, path: Path) -> None:
    entries, size = archive.infolist(), path.stat().st_size
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in entry.filename:
            raise CheckpointError(f"{path}: refuses '{entry.filename}': it leads outside the bundle.")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise CheckpointError(f"{path}: refuses '{entry.filename}': it is a link or device, not a file.")
        if entry.flag_bits & 1:
            raise CheckpointError(f"{path}: '{entry.filename}' is encrypted. Zip the bundle without a password.")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CheckpointError(f"{path}: '{entry.filename}' is packed by a method other than deflate. Zip it again.")
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MOST_FILES or total > min(MOST_BYTES, MOST_RATIO * size):
        raise CheckpointError(
            f"{path}: refuses to unpack {len(entries):,} files of {total / 1e6:,.0f} MB from {size / 1e6:,.2f} MB: "
            "no recognizer shrinks so much."
        )
