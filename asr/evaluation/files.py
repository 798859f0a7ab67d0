"""The folder of an evaluation: `results.jsonl`, `errors.txt` and `summary.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asr.errors import DataError
from asr.evaluation.alignment import format_errors
from asr.evaluation.counts import ErrorCounts
from asr.evaluation.result import Result
from asr.writers.files import whole_file

RESULTS, ERRORS, SUMMARY = FILES = ("results.jsonl", "errors.txt", "summary.json")


def check_folder(folder: str | Path, overwrite: bool = False) -> None:
    """Make the folder and see that results may be written there; call it before the decoding, which takes long.

    Raises:
        DataError: it holds results and `overwrite` is false, or cannot be written to.
    """
    folder = Path(folder)
    found = [name for name in FILES if (folder / name).exists()]
    if found and not overwrite:
        raise DataError(
            f"{folder}: holds results already ({', '.join(found)}). Choose another folder with out=DIR, "
            "or replace them with overwrite=true."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"out={folder}: cannot be made ({error.strerror}). Choose another: out=DIR.") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{folder}: no permission to write. Choose another folder with out=DIR.")


def write_results(
    folder: str | Path, results: Sequence[Result], summary: Mapping[str, Any], overwrite: bool = False
) -> None:
    """Write the three files of an evaluation.

    Args:
        folder: made if it is missing.
        results: one line each in `results.jsonl`; the wrong ones, aligned, in `errors.txt`.
        summary: what goes to `summary.json`: `Evaluation.as_dict()` with the command, manifests and so on.
        overwrite: replace the results that lie there.

    Raises:
        DataError: as `check_folder`, or the disk is full.
    """
    check_folder(folder, overwrite)
    rows = (json.dumps(asdict(result), ensure_ascii=False) + "\n" for result in results)
    text = json.dumps(dict(summary), ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    for name, content in ((RESULTS, "".join(rows)), (ERRORS, format_errors(results)), (SUMMARY, text)):
        with whole_file(Path(folder, name), "out") as file:
            file.write(content)


def read_results(path: str | Path) -> list[Result]:
    """Read the results of an evaluation back, from its folder or its `results.jsonl`.

    Raises:
        DataError: the file is missing or empty, or a line is broken.
    """
    path = Path(path)
    path = path / RESULTS if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path}: no such file. Results are written by scripts/evaluate.py; give its out= folder.")
    results = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                counts = {unit: ErrorCounts(**row[unit]) for unit in ("words", "characters")}
                results.append(Result(**(row | counts)))
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(
                    f"{path}, line {number}: not a result ({error}). Evaluate again, or give another folder."
                ) from None
    if not results:
        raise DataError(f"{path}: holds no results. Evaluate again.")
    return results
