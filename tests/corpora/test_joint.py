"""Several corpora prepared as one."""

from __future__ import annotations

import pytest

from asr.corpora import Folder, Joint, Report
from asr.data.manifest import read_manifest
from asr.errors import ConfigError, DataError


@pytest.fixture
def part(tmp_path, sound, lines):
    """A folder of recordings as a corpus."""

    def make(name: str, *texts: str, **options) -> Folder:
        for k, text in enumerate(texts):
            sound(tmp_path / name / f"{k}.wav", 0.5 + k)
            lines(tmp_path / name / f"{k}.txt", text)
        return Folder(root=str(tmp_path / name), **options)

    return make


def test_each_part_is_prepared_as_it_would_be_alone(part, tmp_path):
    parts = {"a": part("a", "one", "two", max_duration=1.0), "b": part("b", "three", "four")}
    report = Joint(parts=parts).prepare(tmp_path / "out")
    assert report.manifests == {f"train-{name}": tmp_path / "out" / name / "train.jsonl" for name in parts}
    for name, corpus in parts.items():
        alone = corpus.prepare(tmp_path / f"alone-{name}")
        assert list(read_manifest(alone.manifests["train"])) == list(read_manifest(report.manifests[f"train-{name}"]))
        assert report.kept[f"train-{name}"] == alone.kept["train"]
        assert report.dropped[f"train-{name}"] == alone.dropped["train"]
    assert sum(tally.utterances for tally in report.dropped["train-a"].values()) == 1
    assert Report.load(tmp_path / "out") == report
    assert Joint(parts=parts).prepare(tmp_path / "out") == report  # again


def test_other_parts_go_elsewhere(part, tmp_path):
    parts = {"a": part("a", "one"), "b": part("b", "two")}
    Joint(parts=parts).prepare(tmp_path / "out")
    with pytest.raises(DataError, match=r"made from other arguments: parts=.*another out="):
        Joint(parts={"a": parts["a"]}).prepare(tmp_path / "out")


def test_errors_name_the_option_of_the_part(part, tmp_path):
    with pytest.raises(DataError, match=r"^corpus\.parts\.b\.root is not set: corpus\.parts\.b\.root=DIR names"):
        Joint(parts={"a": part("a", "one"), "b": Folder()}).prepare(tmp_path / "out")
    with pytest.raises(DataError, match=r"^corpus\.parts\.b\.root=.*/corpus\.none: no such folder"):
        Joint(parts={"b": Folder(root=str(tmp_path / "corpus.none"))}).prepare(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"\+corpus@corpus\.parts\.an4=an4"):
        Joint().prepare(tmp_path / "out")
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_part_may_be_any_corpus(part, tmp_path):
    """Corpora of plugins need a `prepare` only."""
    inner = part("a", "one")

    class Plain:
        prepare = inner.prepare

    assert set(Joint(parts={"x": Plain()}).prepare(tmp_path / "out").manifests) == {"train-x"}
