"""Real speech for tests, where it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("ASR_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def _real_speech(name: str) -> Path:
    root = DATA / name
    if not root.is_dir():
        pytest.skip(f"needs the corpus in {root}; the environment variable ASR_TEST_DATA names another folder")
    return root


@pytest.fixture(scope="session")
def an4_root() -> Path:
    """The training part of CMU AN4 in its official layout."""
    return _real_speech("an4")


@pytest.fixture(scope="session")
def speechocean_root() -> Path:
    """The training part of speechocean762: a Kaldi data directory and its audio."""
    return _real_speech("speechocean762")
