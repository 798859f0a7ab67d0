"""The arrays of an n-gram model: their layout, back-off, folders on disk."""

from __future__ import annotations

import json
import math
import mmap
import random
import subprocess
import sys

import numpy as np
import pytest
import yaml

import asr.lm
from asr.errors import CheckpointError, DataError
from asr.lm import KneserNey, Ngram
from asr.lm.arpa import read_arpa, write_arpa
from asr.lm.ngram import ARRAYS, step
from tests.lm.test_kneser_ney import zipfian


def trained(order=3, **options) -> Ngram:
    return KneserNey(order, **options).fit(zipfian(2, 150, 80))


def entries(model, path) -> tuple[dict, dict]:
    """The probabilities and back-offs in a model's ARPA file, by tuple of words, in natural logarithms."""
    write_arpa(model, path)
    probs, backoffs = {}, {}
    for line in path.read_text("utf-8").splitlines():
        fields = line.split("\t")
        if len(fields) > 1:
            gram = tuple(fields[1].split(" "))
            probs[gram] = float(fields[0]) * math.log(10)
            backoffs[gram] = float(fields[2]) * math.log(10) if len(fields) > 2 else 0.0
    return probs, backoffs


def naive(probs, backoffs, history, word) -> float:
    if (*history, word) in probs:
        return probs[(*history, word)]
    return backoffs.get(history, 0.0) + naive(probs, backoffs, history[1:], word)


def spell(model, node) -> tuple[str, ...]:
    """The words of a node."""
    words = []
    while node:
        words.append(model.vocabulary[model.words[node]])
        node = int(np.searchsorted(model.first, node, "right")) - 1
    return tuple(words[::-1])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_layout(order, tmp_path):
    model = trained(order, prune=[0, 0, 1][:order])
    probs, backoffs = entries(model, tmp_path / "lm.arpa")
    nodes, contexts = 1 + sum(model.counts), 1 + sum(model.counts[:-1])
    assert {name: len(getattr(model, name)) for name in ARRAYS} == {
        "words": nodes, "log_probs": nodes, "suffixes": nodes, "backoffs": contexts, "first": contexts + 1,
    }  # fmt: skip
    assert model.vocabulary[:3] == ["<unk>", "<s>", "</s>"]
    assert model.words[0] == -1 and model.backoffs[0] == 0
    assert np.array_equal(model.words[1 : model.counts[0] + 1], np.arange(model.counts[0]))
    grams = [spell(model, node) for node in range(nodes)]
    assert len(set(grams)) == nodes and set(grams[1:]) == set(probs)
    ids = [tuple(model.ids[word] for word in gram) for gram in grams]
    assert ids == sorted(ids, key=lambda gram: (len(gram), gram))
    for node, gram in enumerate(grams[1:], 1):
        assert model.log_probs[node] == pytest.approx(probs[gram], abs=1e-6)
        assert grams[model.suffixes[node]] == next(gram[k:] for k in range(1, 9) if gram[k:] in probs or not gram[k:])
        if node < contexts:
            assert model.backoffs[node] == pytest.approx(backoffs[gram], abs=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("hole", [False, True])
def test_step_equals_a_dictionary(order, hole, tmp_path):
    model = trained(order)
    if hole:  # as SRILM prunes: n-grams go that are suffixes of others, but none that is a context
        probs, backoffs = entries(model, tmp_path / "whole.arpa")
        contexts = {gram[:-1] for gram in probs}
        draw = random.Random(0)
        gone = {gram for gram in probs if len(gram) > 1 and gram not in contexts and draw.random() < 0.5}
        left = {gram: p for gram, p in probs.items() if gram not in gone}
        assert order < 3 or any(gram[1:] in gone for gram in left)
        model = read_arpa(write_entries(left, backoffs, order, tmp_path / "pruned.arpa"))
    probs, backoffs = entries(model, tmp_path / "lm.arpa")
    draw = random.Random(1)
    for _ in range(60):
        state, history = draw.choice([(0, ()), (model.start, ("<s>",) if order > 1 else ())])
        for _ in range(8):
            word = draw.choices(range(len(model.vocabulary)), [1 / (1 + k) for k in range(len(model.vocabulary))])[0]
            log_prob, state = step(*model.arrays, state, word)
            assert log_prob == pytest.approx(naive(probs, backoffs, history, model.vocabulary[word]), abs=1e-5)
            history = (*history, model.vocabulary[word])[-(order - 1) :] if order > 1 else ()
            while history and history not in probs:
                history = history[1:]
            assert spell(model, state) == history and state < len(model.backoffs)


def write_entries(probs, backoffs, order, path):
    lines = ["\\data\\", *(f"ngram {n}={sum(len(gram) == n for gram in probs)}" for n in range(1, order + 1)), ""]
    for n in range(1, order + 1):
        lines.append(f"\\{n}-grams:")
        for gram in probs:
            if len(gram) == n:
                weight = f"\t{backoffs[gram] / math.log(10):.9g}" if n < order else ""
                lines.append(f"{probs[gram] / math.log(10):.9g}\t{' '.join(gram)}{weight}")
        lines.append("")
    path.write_text("\n".join([*lines, "\\end\\", ""]), "utf-8")
    return path


def test_score_adds_up(tmp_path):
    model = trained()
    probs, backoffs = entries(model, tmp_path / "lm.arpa")
    sentence = ["w0", "OOV", "w1", "w0"]
    known = ["<s>", "w0", "<unk>", "w1", "w0", "</s>"]
    expected = [naive(probs, backoffs, tuple(known[max(0, k - 2) : k]), known[k]) for k in range(1, 6)]
    assert model.word_log_probs(sentence) == pytest.approx(expected, abs=1e-5)
    assert model.score(sentence) == pytest.approx(sum(expected), abs=1e-5)
    assert model.score(sentence, eos=False) == pytest.approx(sum(expected[:-1]), abs=1e-5)
    assert model.score([], bos=False) == pytest.approx(probs[("</s>",)], abs=1e-6)
    assert model.score(["w0"], bos=False, eos=False) == pytest.approx(probs[("w0",)], abs=1e-6)
    assert model.score([], eos=False) == 0


def test_perplexity_equals_that_of_kenlm():
    """The numbers of `query -v summary` for the model of lmplz on the same text."""
    lines = ["w0 w1 w2 w0 w1", "w3 w0 w0 w17 w2 w59", "w40 w410 nothing w0", "w5"]
    found = KneserNey(3).fit(zipfian()).perplexity(line.split() for line in lines)
    assert found.including_oov == pytest.approx(34.4450704685795, rel=1e-5)
    assert found.excluding_oov == pytest.approx(22.46428448690016, rel=1e-5)
    assert (found.tokens, found.oov, found.sentences) == (20, 2, 4)
    assert found.oov_rate == 2 / 16
    assert str(found) == "perplexity 22.46 without OOV, 34.45 with OOV; OOV 12.50 % [2 / 16], 4 sentences"


def test_perplexity_of_nothing():
    found = trained().perplexity([])
    assert math.isnan(found.including_oov) and found.oov_rate == 0


def test_saving_and_opening(tmp_path):
    model = trained(3, prune=[0, 0, 1])
    model.save(tmp_path / "a" / "lm")
    for opened in (Ngram.load(tmp_path / "a" / "lm"), asr.lm.load(str(tmp_path / "a" / "lm"))):
        for name, kind in ARRAYS.items():
            array = getattr(opened, name)
            assert np.array_equal(array, getattr(model, name)) and array.dtype == kind
            assert not array.flags.writeable and array.flags.c_contiguous
        base = opened.words
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base, mmap.mmap)  # not copied into memory
        assert (opened.order, opened.vocabulary, opened.unit) == (3, model.vocabulary, "words")
        assert opened.metadata == model.metadata and opened.counts == model.counts
        assert opened.score(["w0", "w1"]) == model.score(["w0", "w1"])
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["lm"]  # nothing half-made is left


def test_a_word_may_hold_any_character_but_white_space(tmp_path):
    words = ["é", "日本", "\u00a0", "\u2028", "\x85", "'", "#", "\\data\\", "ngram"]
    model = KneserNey(2).fit([words[:2], words[4:]])
    model.save(tmp_path / "lm")
    write_arpa(model, tmp_path / "lm.arpa")
    assert asr.lm.load(tmp_path / "lm").vocabulary == asr.lm.load(tmp_path / "lm.arpa").vocabulary == model.vocabulary


def test_saving_replaces_a_model_and_nothing_else(tmp_path):
    trained(2).save(tmp_path / "lm")
    trained(3).save(tmp_path / "lm")
    assert Ngram.load(tmp_path / "lm").order == 3
    (tmp_path / "empty").mkdir()
    trained(2).save(tmp_path / "empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    (tmp_path / "file").touch()
    for place in ("mine", "file"):
        with pytest.raises(DataError, match=f"{place}: holds something other than a language model"):
            trained(2).save(tmp_path / place)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "precious"
    with pytest.raises(DataError, match="cannot be written"):
        trained(2).save(tmp_path / "file" / "lm")


def test_a_mapped_model_survives_its_replacement(tmp_path):
    trained(3).save(tmp_path / "lm")
    opened = Ngram.load(tmp_path / "lm")
    before = opened.score(["w0", "w1", "w5"])
    trained(2).save(tmp_path / "lm")
    assert opened.score(["w0", "w1", "w5"]) == before


def damage_header(**changes):
    def change(folder):
        header = yaml.safe_load((folder / "lm.yaml").read_text())
        (folder / "lm.yaml").write_text(json.dumps(header | changes))

    return change


def damage_array(name, place, value):
    def change(folder):
        array = np.load(folder / f"{name}.npy")
        array[place] = value
        np.save(folder / f"{name}.npy", array)

    return change


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9])


DAMAGE = [
    ("lm.yaml", lambda folder: (folder / "lm.yaml").write_text("{"), "damaged"),
    ("lm.yaml", lambda folder: (folder / "lm.yaml").write_text("- a"), "names no kind"),
    ("lm.yaml", damage_header(format=2), "written by a newer version of the toolkit. Upgrade"),
    ("lm.yaml", damage_header(kind="gpt"), "no such kind of language model: 'gpt'. There are: "),
    ("lm.yaml", damage_header(counts=[1, "2"]), "'counts' must be a list of numbers"),
    ("lm.yaml", damage_header(order=2), "'order', 'unit' or 'metadata' is wrong"),
    ("lm.yaml", damage_header(unit="letters"), "'order', 'unit' or 'metadata' is wrong"),
    ("vocabulary.txt", lambda folder: (folder / "vocabulary.txt").unlink(), "no such file"),
    ("vocabulary.txt", cut("vocabulary.txt"), "different words are expected"),
    ("vocabulary.txt", lambda folder: (folder / "vocabulary.txt").write_bytes(b"\xff\n"), "damaged"),
    *((f"{name}.npy", lambda folder, name=name: (folder / f"{name}.npy").unlink(), "no such file") for name in ARRAYS),
    *((f"{name}.npy", cut(f"{name}.npy"), "damaged") for name in ARRAYS),
    (
        "words.npy",
        lambda folder: np.save(folder / "words.npy", np.zeros(3, np.int32)),
        "Its files are not of one model",
    ),
    ("words.npy", lambda folder: np.save(folder / "words.npy", np.array([{}], object)), "damaged"),
    ("log_probs.npy", damage_array("log_probs", 5, np.nan), "make no model"),
    ("log_probs.npy", damage_array("log_probs", 5, 0.1), "make no model"),
    ("backoffs.npy", damage_array("backoffs", 5, np.inf), "make no model"),
    ("words.npy", damage_array("words", -1, 1 << 30), "make no model"),
    ("words.npy", damage_array("words", 4, 0), "make no model"),
    ("suffixes.npy", damage_array("suffixes", 9, 9), "make no model"),
    ("suffixes.npy", damage_array("suffixes", 9, -1), "make no model"),
    ("first.npy", damage_array("first", 6, 1 << 30), "make no model"),
    ("first.npy", damage_array("first", -1, 7), "make no model"),
]


@pytest.mark.parametrize(("name", "damage", "says"), DAMAGE)
def test_damage_is_named(name, damage, says, tmp_path):
    trained().save(tmp_path / "lm")
    damage(tmp_path / "lm")
    with pytest.raises(CheckpointError) as raised:
        asr.lm.load(tmp_path / "lm")
    assert str(tmp_path / "lm" / name) in str(raised.value)
    assert says in str(raised.value)


def test_nothing_to_load(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such language model"):
        asr.lm.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"it has no lm\.yaml"):
        asr.lm.load(tmp_path)
    with pytest.raises(CheckpointError, match="kind 'lstm', not an n-gram model"):
        trained().save(tmp_path / "lm")
        damage_header(kind="lstm")(tmp_path / "lm")
        Ngram.load(tmp_path / "lm")


def test_the_package_stays_light():
    code = "import sys, asr; print('numba' in sys.modules); import asr.lm; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
