from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture
def sound():
    """Write noise of so many seconds to a file of any format, and return its path."""

    def write(path: Path, seconds: float = 0.5, rate: int = 16000, peak: float = 0.5, **options) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = peak * np.random.default_rng(0).uniform(-1, 1, round(seconds * rate))
        soundfile.write(path, samples, rate, **options)
        return path

    return write


@pytest.fixture
def lines():
    """Write lines to a text file, and return its path."""

    def write(path: Path, *rows: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        return path

    return write
