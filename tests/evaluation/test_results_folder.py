from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asr.commands import results_folder

pytestmark = pytest.mark.usefixtures("clean")


@pytest.fixture
def a_run(tmp_path: Path) -> Path:
    """What lies in a run's folder, as far as the place of results depends on it."""
    run = tmp_path / "runs" / "a"
    for name in ("config.yaml", "bundle/config.yaml", "bundle/model.safetensors", "checkpoints/last.ckpt"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    return run


def summarize(folder: Path, **summary: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary), "utf-8")


def test_where_results_go(a_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Path("语音/test.v1.jsonl")
    for checkpoint in ("runs/a", "runs/a/bundle", "runs/a/checkpoints/last.ckpt", a_run / "bundle"):
        assert results_folder(Path(checkpoint), manifest) == Path("runs/a/evaluation/test.v1")
    (tmp_path / "best").symlink_to(a_run / "bundle")
    assert results_folder(Path("best"), manifest) == Path("runs/a/evaluation/test.v1")
    (a_run / "bundle").rename(tmp_path / "bundle-1.0")
    assert results_folder(Path("bundle-1.0"), manifest) == Path("evaluation/bundle-1.0/test.v1")
    (a_run / "checkpoints" / "last.ckpt").rename(tmp_path / "bundle-1.0" / "x=1.ckpt")
    assert results_folder(Path("bundle-1.0/x=1.ckpt"), manifest) == Path("evaluation/x=1/test.v1")
    monkeypatch.chdir(tmp_path / "bundle-1.0")
    assert results_folder(Path("."), manifest) == Path("evaluation/bundle-1.0/test.v1")
    assert results_folder(Path("../runs/a"), manifest) == a_run / "evaluation" / "test.v1"


def test_results_replace_only_those_of_the_same_evaluation(a_run: Path, tmp_path: Path) -> None:
    manifest, bundle, ckpt = tmp_path / "test.jsonl", a_run / "bundle", a_run / "checkpoints" / "last.ckpt"
    first = Path("runs/a/evaluation/test")
    summarize(first, manifest="test.jsonl")  # as a training writes it, of its bundle
    for checkpoint in (a_run, bundle):
        assert results_folder(checkpoint, manifest) == first
    assert results_folder(bundle, tmp_path / "other" / "test.jsonl") == first.with_name("test-2")
    assert results_folder(bundle, manifest, {"decoder": {"_target_": "asr.decoders.Greedy"}}) == first.with_name(
        "test-2"
    )
    assert results_folder(bundle, manifest, {"engine": "auto", "channel": None}) == first
    assert results_folder(bundle, manifest, {"channel": 1}) == first.with_name("test-2")
    assert results_folder(ckpt, manifest) == first.with_name("test-2")
    summarize(first.with_name("test-2"), manifest=str(manifest), checkpoint=str(ckpt), decoder=None)
    assert results_folder(ckpt, manifest) == first.with_name("test-2")
    assert results_folder(bundle, tmp_path / "other" / "test.jsonl") == first.with_name("test-3")
    summarize(first, manifest=str(manifest), checkpoint=str(a_run), decoder=None)
    assert results_folder(bundle, manifest) == first
    for broken in ("", "[]", "{}", '{"manifest": 3}'):
        (first / "summary.json").write_text(broken)
        assert results_folder(bundle, manifest) == first.with_name("test-3")
