from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from asr.decoders import Beam, Greedy, Rescored
from asr.errors import CheckpointError, ConfigError
from asr.lm.lstm import Lstm
from asr.testing import check_decoder
from asr.tokenizers import Characters, Words
from asr.types import Emissions, Hypothesis

LETTERS = Characters(labels=[" ", "a", "b"])
CONF = Path(__file__).parents[2] / "conf" / "decoder"
ARPA = """\\data\\
ngram 1=6

\\1-grams:
-1.0\t<unk>
-99\t<s>
-0.5\t</s>
-0.4\ta
-0.9\tb
-1.3\tab

\\end\\
"""
LN10 = math.log(10)


def lstm(unit="words", words=("a", "b", "ab"), seed=0) -> Lstm:
    torch.manual_seed(seed)
    model = Lstm(["<unk>", "<s>", "</s>", *words], unit=unit, width=8, layers=1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.eval().requires_grad_(False)


@pytest.fixture
def unigrams(tmp_path):
    (tmp_path / "lm.arpa").write_text(ARPA)
    return tmp_path / "lm.arpa"


def emissions(batch, length, labels, seed) -> Emissions:
    logits = np.random.default_rng(seed).normal(0, 1.5, (batch, length, labels))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    lengths = np.linspace(length, 1, batch).astype(np.int64)
    return Emissions(log_probs.astype(np.float32), lengths, 0.04)


def test_scores_by_hand(unigrams):
    """Unigrams: ln p of a text is the sum over its words and its end."""
    decoder = Rescored(LETTERS, unigrams, lm_weight=0.7, keep=0.25, word_score=-0.3)
    first = Hypothesis("a ab", (2, 1, 2, 3), -4.0, acoustic_score=-3.0, lm_score=-2.0)
    second = Hypothesis("a", (2,), -4.2, acoustic_score=-4.4, lm_score=-1.0)
    empty = Hypothesis("", (), -9.0, acoustic_score=-8.0, lm_score=-1.0)
    found = decoder.rescore([[first, second], [empty], []])
    lm = {"a ab": -0.4 - 1.3 - 0.5, "a": -0.4 - 0.5, "": -0.5}
    old = {"a ab": -2.0, "a": -1.0, "": -1.0}
    rest = {"a ab": -4.0 + 2.0, "a": -4.2 + 1.0, "": -9.0 + 1.0}
    for hypothesis, before in ((found[0][0], second), (found[0][1], first), (found[1][0], empty)):
        text = hypothesis.text
        assert hypothesis.lm_score == pytest.approx(0.25 * old[text] + 0.7 * lm[text] * LN10, abs=1e-5)
        words = len(text.split())
        assert hypothesis.score == pytest.approx(rest[text] + hypothesis.lm_score - 0.3 * words, abs=1e-5)
        assert replace(hypothesis, score=before.score, lm_score=before.lm_score) == before, "nothing else is altered"
    assert found[2] == []


def test_a_hypothesis_without_a_language_model_score(unigrams):
    decoder = Rescored(LETTERS, unigrams, lm_weight=1.0, keep=0.0)
    [[before]] = Greedy(LETTERS)(emissions(1, 5, 4, seed=3))
    [[found]] = decoder.rescore([[before]])
    assert found.lm_score == pytest.approx(decoder.lm.score(before.text.split()))
    assert found.score == pytest.approx(before.score + found.lm_score)


@pytest.mark.parametrize("options", [{}, {"keep": 0.3, "word_score": 0.5}, {"candidates": 5, "nbest": 5}])
def test_the_lists_of_the_search_in_the_order_of_the_formula(unigrams, options):
    """Against the search's own lists, scored one text at a time."""
    model = lstm()
    batch = emissions(4, 20, 4, seed=1)
    beam = {"lm": str(unigrams), "lm_weight": 0.6, "threads": 1}
    options = {"lm_weight": 0.8, "nbest": 30, **options}
    found = Rescored(LETTERS, model, beam=beam, **options)(batch)
    candidates = options.get("candidates", 50)
    changed = 0
    for new, old in zip(found, Beam(LETTERS, nbest=candidates, **beam)(batch), strict=True):
        by_hand = []
        for h in old:
            lm_score = options.get("keep", 1.0) * h.lm_score + 0.8 * model.score(h.text.split())
            score = h.score - h.lm_score + lm_score + options.get("word_score", 0.0) * len(h.text.split())
            by_hand.append((score, lm_score, h.labels))
        by_hand = sorted(by_hand, reverse=True)[: options["nbest"]]
        assert [h.labels for h in new] == [labels for _, _, labels in by_hand]
        np.testing.assert_allclose([(h.score, h.lm_score) for h in new], [row[:2] for row in by_hand], atol=1e-4)
        changed += new[0].labels != old[0].labels
    assert changed


def test_without_weight_nothing_changes(unigrams):
    batch = emissions(3, 25, 4, seed=2)
    decoder = Rescored(LETTERS, lstm(), lm_weight=0.0, candidates=20, nbest=20, beam={"lm": str(unigrams)})
    for new, old in zip(decoder(batch), Beam(LETTERS, lm=str(unigrams), nbest=20)(batch), strict=True):
        assert [h.labels for h in new] == [h.labels for h in old]
        np.testing.assert_allclose([h.score for h in new], [h.score for h in old], atol=1e-9)


def test_replacing_the_model_of_the_search_by_itself_changes_nothing(unigrams):
    batch = emissions(3, 25, 4, seed=4)
    options = {"lm": str(unigrams), "lm_weight": 0.6}
    decoder = Rescored(LETTERS, keep=0.0, candidates=20, nbest=20, beam=options, **options)
    for new, old in zip(decoder(batch), Beam(LETTERS, nbest=20, **options)(batch), strict=True):
        np.testing.assert_allclose([h.score for h in new], [h.score for h in old], atol=1e-4)


def test_a_model_of_labels_sees_the_labels_of_the_text():
    model = lstm("labels", words=("<space>", "a", "b"))
    decoder = Rescored(LETTERS, model, lm_weight=1.0)
    [[found]] = decoder.rescore([[Hypothesis("ab a", (2, 3, 1, 2), 0.0)]])
    assert found.score == pytest.approx(model.score(["a", "b", "<space>", "a"]), abs=1e-5)
    yes_no = Words(["yes", "no"])
    model = lstm("labels", words=("no", "yes"))
    [[found]] = Rescored(yes_no, model, lm_weight=1.0).rescore([[Hypothesis("yes no", (1, 2), 0.0)]])
    assert found.score == pytest.approx(model.score(["yes", "no"]), abs=1e-5)


def test_all_texts_of_a_batch_are_scored_at_once_and_each_once():
    calls = []

    class Counting:
        unit, vocabulary = "words", ["<unk>", "<s>", "</s>", "yes"]

        def score_batch(self, sentences):
            calls.append(sentences)
            return np.array([-float(len(sentence)) for sentence in sentences])

    decoder = Rescored(Words(["yes", "no", "maybe"]), Counting(), candidates=10)
    decoder(emissions(5, 20, 4, seed=5))
    assert len(calls) == 1
    texts = [" ".join(sentence) for sentence in calls[0]]
    assert len(texts) == len(set(texts)) > 10


def test_from_a_folder_it_decodes_alike(tmp_path):
    model = lstm()
    model.save(tmp_path / "lm")
    batch = emissions(2, 20, 4, seed=6)
    options = {"candidates": 10, "nbest": 3}
    assert Rescored(LETTERS, str(tmp_path / "lm"), **options)(batch) == Rescored(LETTERS, model, **options)(batch)


def test_holds_the_contract(unigrams):
    check_decoder(Rescored(LETTERS, lstm(), nbest=4), LETTERS)
    check_decoder(Rescored(LETTERS, unigrams, nbest=4, beam={"lm": str(unigrams)}), LETTERS)
    words = Words(["yes", "no", "maybe"])
    check_decoder(Rescored(words, lstm("labels", words=words.labels[1:])), words)


BAD = {
    "weight": ({"lm_weight": -1.0}, r"decoder\.lm_weight=-1\.0: must be 0"),
    "few candidates": ({"candidates": 3, "nbest": 4}, r"decoder\.candidates=3: must be as many as decoder\.nbest=4"),
    "nothing to do": ({"lm": None}, r"decoder\.lm: has to be given"),
    "nbest of the search": ({"beam": {"nbest": 3}}, r"say decoder\.candidates"),
    "unknown option": ({"beam": {"bean": 3}}, r"decoder\.beam: has no option 'bean'. Did you mean beam"),
    "type of an option": ({"beam": {"beam": "wide"}}, r"decoder\.beam\.beam=wide: must be of type int"),
    "range of an option": ({"beam": {"beam": 0}}, r"decoder\.beam\.beam=0"),
    "device": ({"lm_device": "tpu9"}, r"decoder\.lm_device=tpu9"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_named(name):
    options, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        Rescored(LETTERS, **{"lm": lstm(), **options})


def test_a_model_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        Rescored(LETTERS, str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"decoder\.lm: none of its words can be spelled"):
        Rescored(LETTERS, lstm(words=("A", "B", "AB")))
    foreign = lstm("labels", words=("x", "y", "z"))
    with pytest.raises(ConfigError, match=r"decoder\.lm: .*does not know 3 of the tokenizer's 3, such as '<space>'"):
        Rescored(LETTERS, foreign)


def test_the_config_offers_every_option_of_the_search():
    """With the values that decoder=beam has."""
    beam = yaml.safe_load((CONF / "beam.yaml").read_text())
    ours = yaml.safe_load((CONF / "rescored.yaml").read_text())
    assert ours["beam"] == {key: value for key, value in beam.items() if key not in ("_target_", "nbest")}


def test_a_random_list_is_sorted(unigrams):
    draw = random.Random(0)
    hypotheses = [
        Hypothesis(" ".join(draw.choices("ab", k=draw.randrange(5))), (), draw.uniform(-9, 0), lm_score=draw.random())
        for _ in range(60)
    ]
    [found] = Rescored(LETTERS, unigrams).rescore([hypotheses])
    scores = [h.score for h in found]
    assert scores == sorted(scores, reverse=True)
    assert sorted(h.text for h in found) == sorted(h.text for h in hypotheses)
