"""Walking through folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def files_below(folder: str | Path, unreadable: Callable[[OSError], Any] | None = None) -> list[str]:
    """The paths of all files below a folder, sorted; links to folders are followed, but not in circles.

    Args:
        folder: it need not exist.
        unreadable: told of each folder that cannot be read; by default it is passed over.
    """
    found: list[str] = []
    seen = set(map(str, Path(os.path.realpath(folder)).parents))  # a link to one of them leads back here
    for above, below, names in os.walk(folder, onerror=unreadable, followlinks=True):
        if (real := os.path.realpath(above)) in seen:
            below.clear()
            continue
        seen.add(real)
        found += [os.path.join(above, name) for name in names]
    return sorted(found)
