"""The examples in docstrings run, in a folder with a bundle and two recordings."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile

import asr
from asr.bundle import pipeline_config, save_bundle
from tests.test_recognizer import CONFIG, pipeline

ROOT = Path(asr.__file__).parent
MODULES = sorted(
    ".".join(("asr", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_bundle(tmp_path / "bundle", pipeline(), pipeline_config(CONFIG), "")
    for audio in ("talk.wav", "other.flac"):
        soundfile.write(audio, 0.1 * np.random.default_rng(0).standard_normal(32000), 16000)
    found = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS, verbose=False)
    assert not found.failed


def test_there_are_examples() -> None:
    assert {"asr.recognizer", "asr.testing", "asr.overrides"} <= set(MODULES)
