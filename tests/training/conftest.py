"""A corpus that is learnt in seconds: every word is a tone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr.training.module import SpeechRecognition

WORDS = {"low": 300.0, "middle": 900.0, "high": 2700.0}
SMALL = (
    "trainer=cpu", "tokenizer=words", "encoder.layers=1", "encoder.width=24", "encoder.channels=4", "threads=1",
    "data.workers=0", "logger=[csv]", "callbacks=[checkpoints]", "+trainer.enable_progress_bar=false",
)  # fmt: skip
PHONES = (f"objective.phones={Path(__file__).parent / 'tones.dict'}", "objective.phone_layer=1", "encoder.layers=2")
"""Options of a training that learns how the words are pronounced, too."""


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 40 utterances by 8 speakers, of one to four words each."""
    folder = tmp_path_factory.mktemp("tones")
    random = np.random.default_rng(0)
    rows = []
    for k in range(40):
        words = random.choice(list(WORDS), random.integers(1, 5)).tolist()
        pieces = [np.zeros(2400)]
        for word in words:
            pieces += [0.3 * np.sin(2 * np.pi * WORDS[word] * np.arange(4000) / 16000), np.zeros(2400)]
        samples = np.concatenate(pieces) + 0.003 * random.standard_normal(sum(map(len, pieces)))
        soundfile.write(folder / f"{k:02}.flac", samples, 16000)
        row = {"audio_filepath": f"{k:02}.flac", "text": " ".join(words), "speaker": f"s{k % 8}"}
        rows.append(row | {"duration": len(samples) / 16000})
    manifest = folder / "tones.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return manifest


def composed(*overrides: str) -> Any:
    """The config of a training as plain containers."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from asr.cli import _register_resolvers

    _register_resolvers()
    with initialize_config_module("asr.conf", version_base="1.3"):
        return OmegaConf.to_container(compose("train", [*overrides]), resolve=True)


@pytest.fixture
def configure(tones: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The config of a small training on the tones."""
    return lambda name, *options: composed(*SMALL, f"data.train={tones}", f"out={tmp_path / name}", *options)


@pytest.fixture
def train(configure: Callable[..., dict[str, Any]]) -> Callable[..., Path]:
    """Runs a small training on the tones in this process, and returns its folder."""
    from asr.training.run import train

    def run(name: str, *overrides: str) -> Path:
        config = configure(name, *overrides)
        train(config)
        return Path(config["out"])

    return run


class Killed(BaseException):
    """Ends a training as a signal would: nothing handles it."""


@contextmanager
def killed(monkeypatch: pytest.MonkeyPatch, hook: str, step: int) -> Iterator[None]:
    """What trains within ends in that hook of the module, when so many optimizer steps are done."""
    original = getattr(SpeechRecognition, hook)

    def die(self: SpeechRecognition, *arguments: Any) -> Any:
        if self.global_step == step:
            raise Killed
        return original(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(SpeechRecognition, hook, die)
        yield
