"""Compilation of inner loops by numba. Import it only where a loop needs it: numba takes a second to load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def jit(function: Callable | None = None, **options: Any) -> Any:
    """Compile a function at its first call, without the GIL; the machine code is kept for later processes.

    It is kept in `__pycache__` beside the source, or in the user's cache folder, or in the folder that the environment
    variable `NUMBA_CACHE_DIR` names; where none can be written, each process compiles anew. The code is kept by the
    content of the function's own file: after a change to a compiled function, touch the files whose functions call it.

    Args:
        function: what to compile; `@jit(…)` with options of `numba.njit` returns a decorator.
    """
    if function is None:
        return lambda function: jit(function, **options)
    try:
        return numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        return numba.njit(nogil=True, **options)(function)
