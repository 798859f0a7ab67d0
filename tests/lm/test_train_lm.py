"""The commands train_lm and evaluate_lm: text files to models to perplexities."""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import asr.lm
from asr.bundle import pipeline_config, save_bundle
from asr.cli import run
from asr.errors import ConfigError, DataError
from asr.lm import KneserNey
from asr.lm.text import Sentences, as_paths
from asr.pipeline import build

pytestmark = pytest.mark.usefixtures("clean")
LINES = ["The cat sat on the mat.", "…", "A dog sat on the log!", "", "the CAT saw a dog"] * 4
WORDS = [line.lower().strip("…!. ").split() for line in LINES if line.strip("…")]
CONFIG = {
    "text": {"_target_": "asr.text.Normalizer", "case": "upper"},
    "tokenizer": {"_target_": "asr.tokenizers.Characters", "labels": " ABCDEGHLMNOSTUW"},
    "featurizer": {"_target_": "asr.featurizers.LogMel", "bands": 20},
    "encoder": {"_target_": "asr.encoders.Blstm", "layers": 1, "width": 8, "channels": 2},
    "decoder": {"_target_": "asr.decoders.Greedy"},
    "normalization": "utterance",
}


@pytest.fixture(autouse=True)
def text(clean: None) -> Path:
    Path("a.txt").write_text("\n".join(LINES) + "\n", "utf-8")
    return Path("a.txt")


@pytest.fixture
def recognizer(clean: None) -> Path:
    save_bundle(Path("run/bundle"), build(CONFIG), pipeline_config(CONFIG), "")
    return Path("run")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run a command that must fail, and return what it says."""

    def call(command: str, *arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            run(command, [*arguments])
        captured = capsys.readouterr()
        assert stopped.value.code == 1 and "Traceback" not in captured.err
        return captured.err

    return call


def test_train_and_evaluate(capsys):
    Path("test.txt").write_text("the cat sat\na bird sat\n")
    options = ["lm.order=2", "lm.prune=[0,1]", "arpa=lm.arpa.gz", "samples=0"]
    run("train_lm", ["train=a.txt", "test=test.txt", "out=lm", *options])
    printed = capsys.readouterr().out
    model = asr.lm.load("lm")
    expected = KneserNey(2, [0, 1]).fit([words for words in WORDS if words])
    for found, array in zip(model.arrays, expected.arrays, strict=True):
        assert np.array_equal(found, array)
    assert model.vocabulary == expected.vocabulary and model.metadata["train"] == ["a.txt"]
    perplexity = expected.perplexity([["the", "cat", "sat"], ["a", "bird", "sat"]])
    assert printed.splitlines() == [
        "text 12 sentences, 68 words; 8 lines skipped, of which normalisation leaves nothing",
        *expected.describe().splitlines(),
        "saved lm",
        "saved lm.arpa.gz",
        f"test {perplexity}",
    ]
    assert perplexity.oov == 1 and math.isfinite(perplexity.including_oov)
    for path in ("lm", "lm.arpa.gz"):
        run("evaluate_lm", [f"model={path}", "test=[test.txt]"])
        assert capsys.readouterr().out.splitlines()[-1] == f"test {perplexity}"


def test_what_a_normaliser_leaves_alone(capsys):
    run("train_lm", ["train=a.txt", "out=lm", "text=keep"])
    assert "The" in asr.lm.load("lm").vocabulary and "mat." in asr.lm.load("lm").vocabulary
    capsys.readouterr()
    run("evaluate_lm", ["model=lm", "test=a.txt"])
    assert "note: the model was trained on text normalised by" in capsys.readouterr().out
    run("evaluate_lm", ["model=lm", "test=a.txt", "text=keep"])
    assert "note:" not in capsys.readouterr().out


def test_texts_of_every_kind(capsys):
    rows = [{"audio_filepath": "x.wav", "text": line, "duration": 1.0} for line in LINES]
    Path("m.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows), "utf-8")
    Path("m.jsonl.gz").write_bytes(gzip.compress(Path("m.jsonl").read_bytes()))
    Path("zipped").write_bytes(gzip.compress(Path("a.txt").read_bytes()))
    Path("windows, (1)=.txt").write_bytes(("\ufeff" + "\r\n".join(LINES)).encode())
    expected = list(Sentences(["a.txt"], str.lower))
    for path in ("m.jsonl", "m.jsonl.gz", "zipped", "windows, (1)=.txt"):
        assert list(Sentences([path], str.lower)) == expected
    run("train_lm", ["train=[a.txt,m.jsonl]", "test=windows, (1)=.txt", "out=语音/a=b (1)", "lm.order=1"])
    assert capsys.readouterr().out.startswith("text 24 sentences, 136 words")
    assert asr.lm.load("语音/a=b (1)").metadata["train"] == ["a.txt", "m.jsonl"]


def test_sentences_can_be_gone_through_again():
    found = Sentences(["a.txt"], str.lower)
    assert list(found) == list(found) and (found.sentences, found.empty) == (16, 4)
    assert found.describe() == "16 sentences, 72 words; 4 lines skipped, of which normalisation leaves nothing"


def test_labels_of_a_recognizer(recognizer, capsys, refused):
    arguments = ["train=a.txt", "out=lm", "unit=labels", "lm.order=4"]
    assert "a model of labels needs the recognizer" in refused("train_lm", *arguments)
    run("train_lm", [*arguments, "checkpoint=run", "arpa=lm.arpa", "test=a.txt"])
    model, pipeline = asr.lm.load("lm"), build(CONFIG)
    assert model.unit == "labels" and model.metadata["text"] == {"checkpoint": "run"}
    assert set(model.vocabulary[3:]) == {*"ACDEGHLMNOSTW", "<space>"}
    ids = pipeline.encode(LINES[0])
    labels = [pipeline.tokenizer.labels[k].replace(" ", "<space>") for k in ids]
    assert "".join(labels) == "THE<space>CAT<space>SAT<space>ON<space>THE<space>MAT"
    assert model.score(labels) > model.score(labels[::-1])
    assert asr.lm.load("lm.arpa").unit == "labels"
    capsys.readouterr()
    run("evaluate_lm", ["model=lm.arpa", "test=a.txt", "checkpoint=run/bundle"])
    assert "OOV 0.00 %" in capsys.readouterr().out
    assert "a model of labels needs the recognizer" in refused("evaluate_lm", "model=lm", "test=a.txt")


def test_words_as_a_recognizer_writes_them(recognizer):
    run("train_lm", ["train=a.txt", "out=lm", "checkpoint=run"])
    assert {"CAT", "DOG"} <= set(asr.lm.load("lm").vocabulary)


def test_lines_without_labels(recognizer, refused, capsys):
    with open("a.txt", "a", encoding="utf-8") as file:
        file.write("zebra\n")
    arguments = ["train=a.txt", "out=lm", "unit=labels", "checkpoint=run"]
    said = refused("train_lm", *arguments)
    assert "a.txt, line 21: The character 'Z'" in said and "Or leave such lines out: unknown=skip." in said
    assert not os.path.exists("lm")
    run("train_lm", [*arguments, "unknown=skip"])
    assert "1 lines skipped that have a character or word without a label" in capsys.readouterr().out


def test_an_existing_model_is_kept(refused):
    run("train_lm", ["train=a.txt", "out=lm", "lm.order=2"])
    assert "lm: holds a language model already" in refused("train_lm", "train=a.txt", "out=lm", "lm.order=3")
    assert asr.lm.load("lm").order == 2
    run("train_lm", ["train=a.txt", "out=lm", "overwrite=true", "lm.order=3"])
    assert asr.lm.load("lm").order == 3
    said = refused("train_lm", "train=a.txt", "out=.", "overwrite=true")
    assert ".: holds something other than a language model" in said
    os.makedirs("lm/mine")
    said = refused("train_lm", "train=a.txt", "out=lm", "overwrite=true")
    assert "lm: holds mine beside a language model. Move it away" in said and os.path.isdir("lm/mine")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train=b.txt"], "b.txt: no such file. Give plain text"),
        (["train=[]"], "train: which text?"),
        (["train=3"], "3: no such file"),
        (["train=a.txt", "test=[b.txt]"], "b.txt: no such file"),
        (["train=a.txt", "unit=letters"], "unit=letters: no such unit. "),
        (["train=a.txt", "unknown=drop"], "unknown=drop: no such value"),
        (["train=a.txt", "lm.order=0"], "lm.order=0: must be 1 or more"),
        (["train=a.txt", "lm.order=x"], "lm.order=x: must be of type int"),
        (["train=a.txt", "lm.prune=[1]"], "words are never left out"),
        (["train=a.txt", "lm=trigram"], "lm=trigram: there is no such config in the group 'lm'"),
        (["train=a.txt", "~lm"], "lm: which kind? lm="),
        (["train=a.txt", "checkpoint=nowhere"], "checkpoint=nowhere: no recognizer there"),
        (["train=empty.txt"], "training text of the language model is empty"),
        (["train=special.txt", "text=keep"], "special.txt, line 2: holds <s> or </s>"),
        (["train=bytes.txt"], "bytes.txt, line 2: not UTF-8"),
        (["train=cut.gz"], "cut.gz: its gzip compression is damaged or cut short"),
        (["train=bad.jsonl"], "bad.jsonl, line 2: not JSON"),
        (["train=silent.jsonl"], "silent.jsonl, line 1: must be a JSON object with the key 'text', a string"),
    ],
)
def test_what_is_refused(arguments, says, refused):
    Path("empty.txt").write_text("\n…\n", "utf-8")
    Path("special.txt").write_text("a b\nc </s> d\n")
    Path("bytes.txt").write_bytes(b"a\n\xff\n")
    Path("cut.gz").write_bytes(gzip.compress(b"a b c\n" * 100)[:-12])
    Path("bad.jsonl").write_text('{"text": "a"}\n{"text"\n')
    Path("silent.jsonl").write_text('{"audio_filepath": "a.wav"}\n')
    assert says in refused("train_lm", "out=lm", *arguments)
    assert not os.path.exists("lm")


def test_models_and_texts_to_evaluate(refused):
    assert "nowhere: no such language model" in refused("evaluate_lm", "model=nowhere", "test=a.txt")
    assert ".: no language model: it has no lm.yaml" in refused("evaluate_lm", "model=.", "test=a.txt")
    assert "a.txt: no ARPA file" in refused("evaluate_lm", "model=a.txt", "test=a.txt")
    run("train_lm", ["train=a.txt", "out=lm"])
    assert "test: which text?" in refused("evaluate_lm", "model=lm", "test=[]")


def test_unknown_words_in_the_training_text():
    Path("u.txt").write_text("a <unk> b\n<unk>\n")
    run("train_lm", ["train=u.txt", "out=lm", "text=keep", "lm.order=1"])
    model = asr.lm.load("lm")
    assert model.vocabulary == ["<unk>", "<s>", "</s>", "a", "b"]
    assert model.log_probs[1] > model.log_probs[4]


def test_paths():
    assert as_paths("a, b", "train") == ["a, b"] and as_paths(None, "train") == []
    for value in ([1], [""], [None]):
        with pytest.raises(ConfigError, match=r"must be a path or a list of paths: train=\[a\.txt,b\.jsonl\]"):
            as_paths(value, "train")
    with pytest.raises(DataError, match="no such file"):
        Sentences(["nowhere"], str)
