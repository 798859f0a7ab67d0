"""Compilation of inner loops by numba. Import it only where a loop needs it: numba takes a second to load."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

PACKAGE = Path(__file__).parent
COMPILED = ("jit.py", "decoders/*.py", "lm/*.py")
"""Where functions are compiled, and what they are compiled from."""


def jit(function: Callable | None = None, **options: Any) -> Any:
    """Compile a function at its first call, without the GIL; the machine code is kept for later processes.

    It is kept in the package's `__pycache__`, or in the user's cache folder, or below `NUMBA_CACHE_DIR` if that is set;
    where none can be written, each process compiles anew.

    Args:
        function: what to compile; `@jit(…)` with options of `numba.njit` returns a decorator.
    """
    if function is None:
        return lambda function: jit(function, **options)
    folder = cache_folder()
    if folder is None:
        return numba.njit(nogil=True, **options)(function)
    before = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
    try:
        return numba.njit(nogil=True, cache=True, **options)(function)
    finally:
        numba.config.CACHE_DIR = before  # type: ignore[attr-defined]


@cache
def cache_folder() -> Path | None:
    """The folder of the compiled code of these very sources; `None` if none can be written.

    numba looks at a function's own file only: it would run a function whose callee in another file has changed.
    """
    content = hashlib.sha256(numba.__version__.encode())
    for path in sorted(path for pattern in COMPILED for path in PACKAGE.glob(pattern)):
        content.update(path.read_bytes())
    places = [PACKAGE / "__pycache__", Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "asr"]
    chosen = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    for place in [Path(chosen)] if chosen else places:
        folder = place / f"numba-{content.hexdigest()[:12]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None
