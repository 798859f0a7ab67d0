"""A language model on disk: a folder whose `lm.yaml` names its kind, written whole or not at all."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from asr.errors import CheckpointError, DataError
from asr.lm.base import SPECIAL

HEADER = "lm.yaml"
VOCABULARY = "vocabulary.txt"
FILES = re.compile(rf"{HEADER}|{VOCABULARY}|.*\.(npy|safetensors)")
"""What a model's folder holds."""
FORMAT = 1


def save_folder(folder: str | Path, header: Mapping[str, Any], write: Callable[[Path], None]) -> None:
    """Write a model, whole or not at all.

    Args:
        folder: a language model that lies there is replaced; nothing else is.
        header: plain values, the key `kind` among them; for `lm.yaml`.
        write: puts the other files into a folder that it is given.

    Raises:
        DataError: the place holds something else, or cannot be written.
    """
    folder = Path(folder)
    check_replaceable(folder)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
            new = Path(partial) / "new"
            new.mkdir()
            write(new)
            text = yaml.safe_dump({"format": FORMAT, **header}, sort_keys=False, allow_unicode=True)
            (new / HEADER).write_text(text, "utf-8")
            if folder.exists():
                folder.rename(Path(partial) / "old")
            new.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}). Choose another place.") from None


def check_replaceable(folder: Path) -> None:
    """Make the folder above; raise a DataError if that fails, or the place holds something other than a model."""
    if folder.is_dir():
        names = sorted(path.name for path in folder.iterdir())
        others = [name for name in names if not FILES.fullmatch(name)]
        if HEADER in names and others:
            raise DataError(
                f"{folder}: holds {', '.join(others)} beside a language model. Move it away, or choose another folder."
            )
        if HEADER in names or not names:
            return
    if folder.exists():
        raise DataError(f"{folder}: holds something other than a language model. Choose another folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}). Choose another folder.") from None


def read_header(folder: str | Path) -> dict[str, Any]:
    """The content of a model's `lm.yaml`; it has the key `kind`.

    Raises:
        CheckpointError: it is missing, damaged, or written by a newer version.
    """
    path = Path(folder) / HEADER
    try:
        header = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no language model: it has no {HEADER}. Give the folder that train_lm wrote, or an ARPA file."
        ) from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: damaged ({' '.join(str(error).split())}). Fetch it again.") from None
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise CheckpointError(f"{path}: damaged: it names no kind of language model. Fetch it again.")
    if not isinstance(header.get("format"), int) or header["format"] > FORMAT:
        raise CheckpointError(f"{path}: written by a newer version of the toolkit. Upgrade to load it.")
    return header


def read_vocabulary(path: Path, size: int) -> list[str]:
    """The words of a model, one in each line.

    Raises:
        CheckpointError: the file is missing, or does not hold so many different words.
    """
    try:
        vocabulary = path.read_bytes().decode().split("\n")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file: the model is not whole. Copy the whole folder.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}). Fetch it again.") from None
    if vocabulary.pop() or len(vocabulary) != size or len(set(vocabulary)) != size or tuple(vocabulary[:3]) != SPECIAL:
        raise CheckpointError(
            f"{path}: damaged: {size:,} different words are expected, one in a line, {' '.join(SPECIAL)} first. "
            "Fetch it again."
        )
    return vocabulary
