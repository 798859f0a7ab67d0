"""Kneser-Ney training: equal to the formulas, to lmplz, and a distribution."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from asr.errors import ConfigError, DataError
from asr.lm import KneserNey
from asr.lm.ngram import step

TINY = [
    "the cat sat on the mat",
    "the dog sat on the log",
    "a cat and a dog",
    "the cat saw the dog",
    "on the mat sat a cat",
]


def zipfian(seed=0, lines=400, words=900, longest=9) -> list[list[str]]:
    draw = random.Random(seed).random
    return [[f"w{int(words * draw() ** 6)}" for _ in range(1 + int(longest * draw()))] for _ in range(lines)]


class Reference:
    """The formulas of Chen & Goodman (1998), word for word, on dictionaries of tuples."""

    def __init__(self, sentences, order, prune):
        self.order, self.prune = order, prune
        texts = [("<s>", *sentence, "</s>") for sentence in sentences]
        spans = ((text, n, k) for text in texts for n in range(1, order + 1) for k in range(len(text) - n + 1))
        self.raw = Counter(text[k : k + n] for text, n, k in spans)
        self.words = sorted({word for text in texts for word in text} | {"<unk>"} - {"<s>"})
        self.words.remove("<s>")
        left = {}
        for gram in self.raw:
            left.setdefault(gram[1:], set()).add(gram[0])
        self.adjusted = {
            gram: count if len(gram) == order or gram[0] == "<s>" else len(left[gram])
            for gram, count in self.raw.items()
            if gram != ("<s>",)
        }
        self.discounts = [self.discount(n) for n in range(1, order + 1)]

    def discount(self, n):
        t = Counter(a for gram, a in self.adjusted.items() if len(gram) == n)
        if 0 in (t[1], t[2], t[3]):
            return 0, 0.5, 1, 1.5
        y = t[1] / (t[1] + 2 * t[2])
        d = [k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3)]
        return (0, *d) if all(0 <= d[k] <= k + 1 for k in range(3)) else (0, 0.5, 1, 1.5)

    def p(self, history, word):
        lower = self.p(history[1:], word) if history else 1 / len(self.words)
        n = len(history) + 1
        following = {w: self.adjusted[(*history, w)] for w in self.words if (*history, w) in self.adjusted}
        if n > self.order or not following:
            return lower
        kept = {w for w in following if n == 1 or self.raw[(*history, w)] > self.prune[n - 1]}
        d = self.discounts[n - 1]
        freed = sum(d[min(a, 3)] if w in kept else a for w, a in following.items())
        own = following[word] - d[min(following[word], 3)] if word in kept else 0
        return (own + freed * lower) / sum(following.values())


def probability(model, history, word) -> float:
    """p(word | history) by walking the arrays."""
    state = 0
    for k, known in enumerate(history):
        node = model.ids.get(known, 0)
        state = model.start if k == 0 and known == "<s>" else step(*model.arrays, state, node)[1]
    return math.exp(step(*model.arrays, state, model.ids.get(word, 0))[0])


PRUNINGS = {"all": None, "singletons": [0, 1], "graded": [0, 0, 1, 2]}


@pytest.mark.parametrize("pruning", PRUNINGS)
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_equals_the_formulas(order, pruning):
    prune = PRUNINGS[pruning] and PRUNINGS[pruning][:order]
    estimated = 0
    for seed, (lines, words) in enumerate([(1, 4), (5, 4), (40, 12), (150, 300)]):
        sentences = zipfian(seed, lines, words)
        if seed == 2:
            sentences[3:5] = [["<unk>", "w0"], ["w0", "<unk>", "w1"]]  # counts as any unknown word
        thresholds = [*(prune or [0]), *[(prune or [0])[-1]] * order][:order]
        model, reference = KneserNey(order, prune).fit(sentences), Reference(sentences, order, thresholds)
        found = model.metadata["training"]["discounts"]
        assert np.allclose(found, [d[1:] for d in reference.discounts], atol=1e-12)
        estimated += order - len(model.metadata["training"]["fallback"])
        draw = random.Random(seed)
        for _ in range(150):
            text = ["<s>", *draw.choice(sentences)]
            end = draw.randrange(1, len(text) + 1)
            history = tuple(text[max(0, end - order + 1) : end]) if order > 1 else ()
            word = draw.choice(model.vocabulary)
            for following in ({word, (*text, "</s>")[end], "OOV"}) - {"<s>"}:
                expected = reference.p(history, following if following in reference.words else "<unk>")
                assert probability(model, history, following) == pytest.approx(expected, rel=2e-6)
    assert estimated > 0


LMPLZ = [
    # text, order, prune, n-grams, log10 p of test sentences, by KenLM 0.3's `lmplz` (--discount_fallback) and `query`
    ("tiny", 3, None, [13, 23, 25], [-3.2948186, -7.0973887, -1.7739949, -5.1657777]),
    ("zipfian", 3, None, [515, 1506, 1785], [-6.670838, -11.0384, -10.582287, -2.4510171]),
    ("zipfian", 4, [0, 0, 1], [515, 1506, 77, 16], [-6.541605, -11.074948, -10.5570965, -2.4310083]),
    ("zipfian", 3, [0, 1, 2], [515, 220, 26], [-6.461833, -10.764521, -10.452783, -2.6159232]),
]
TESTS = {
    "tiny": ["the cat sat on the log", "a dog saw a bird", "mat", "the the the"],
    "zipfian": ["w0 w1 w2 w0 w1", "w3 w0 w0 w17 w2 w59", "w40 w410 nothing w0", "w5"],
}


@pytest.mark.parametrize(("text", "order", "prune", "counts", "expected"), LMPLZ)
def test_equals_lmplz(text, order, prune, counts, expected):
    sentences = [line.split() for line in TINY] if text == "tiny" else zipfian()
    model = KneserNey(order, prune).fit(sentences)
    assert model.counts == counts
    found = [model.score(line.split()) / math.log(10) for line in TESTS[text]]
    assert found == pytest.approx(expected, abs=5e-6)


def test_discounts_equal_those_of_lmplz():
    training = KneserNey(4, [0, 0, 1]).fit(zipfian()).metadata["training"]
    expected = [[0.55, 1.29487, 2.252], [0.830552, 1.35821, 1.63203], [0.946932, 1.17143, 1.91779], [0.5, 1, 1.5]]
    assert np.allclose(training["discounts"], expected, atol=1e-5)
    assert training["fallback"] == [4] and training["prune"] == [0, 0, 1, 1]


def test_says_where_discounts_are_a_fallback():
    lines = KneserNey(3).fit(line.split() for line in TINY).describe().splitlines()
    assert lines[0] == "3-gram model of words, vocabulary 13 with <unk> <s> </s>"
    assert lines[1].split()[:2] == ["1-grams", "13"] and "fallback" not in lines[1]
    assert "discounts 0.500000 1.000000 1.500000 (fallback: too little text" in lines[3]


@pytest.mark.parametrize("prune", PRUNINGS.values())
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_of_every_context_sum_to_one(order, prune):
    model = KneserNey(order, prune and prune[:order]).fit([*zipfian(3, 100, 60), ["<unk>", "w1"], []])
    words = [k for k in range(len(model.vocabulary)) if k != 1]
    for state in range(len(model.backoffs)):
        total = sum(math.exp(step(*model.arrays, state, word)[0]) for word in words)
        assert total == pytest.approx(1, abs=2e-5)
    assert model.log_probs[2] == 0  # <s> is certain where it is scored


def test_pruning_takes_what_is_rare_and_no_words():
    sentences = zipfian()
    counts = Counter(tuple(s[k : k + 2]) for s in sentences for k in range(len(s) - 1))
    counts.update([("<s>", s[0]) for s in sentences] + [(s[-1], "</s>") for s in sentences])
    model = KneserNey(2, [0, 2]).fit(sentences)
    assert model.counts == [len({word for s in sentences for word in s}) + 3, sum(c > 2 for c in counts.values())]
    assert KneserNey(4, [0, 0, 500]).fit(sentences).counts[2:] == [0, 0]


def test_sentences_too_short_for_the_order():
    model = KneserNey(5).fit([["a"], ["b"], ["a"]])
    assert model.counts == [5, 4, 2, 0, 0]
    assert math.exp(model.score(["a"])) > math.exp(model.score(["b"])) > math.exp(model.score(["c"]))


def test_the_order_of_the_sentences_does_not_matter():
    sentences = zipfian(1)
    models = [KneserNey(3).fit(sentences), KneserNey(3).fit(iter(sentences[::-1]))]
    for sentence in [*sentences[:50], ["w0", "OOV", "w1"]]:
        assert models[0].score(sentence) == pytest.approx(models[1].score(sentence), abs=1e-5)


def test_what_the_metadata_say():
    model = KneserNey(2).fit([["a", "b"]], "labels", {"text": "mine"})
    assert model.unit == "labels" and model.metadata["text"] == "mine"
    assert model.metadata["training"]["method"] == "interpolated modified Kneser-Ney"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"order": 0}, r"lm\.order=0: must be 1 or more"),
        ({"prune": [0, -1]}, r"lm\.prune=\[0, -1\]: must be counts"),
        ({"prune": [0, 0.5]}, "must be counts"),
        ({"prune": 1}, r"lm\.prune=1: must be counts, 0 or more, one for each order: lm\.prune=\[0,0,1\]"),
        ({"prune": [0, 0, 0, 1]}, r"has 4 thresholds, but lm\.order=3"),
        ({"prune": [1]}, "words are never left out, so the first number must be 0"),
        ({"prune": [0, 2, 1]}, "must not fall"),
    ],
)
def test_options(options, says):
    with pytest.raises(ConfigError, match=says):
        KneserNey(**options)


@pytest.mark.parametrize("sentences", [[], [[], []]])
def test_no_text(sentences):
    with pytest.raises(DataError, match="training text of the language model is empty"):
        KneserNey().fit(sentences)


@pytest.mark.parametrize("word", ["<s>", "</s>", "a b", "a\n", ""])
def test_words_that_cannot_be(word):
    with pytest.raises(DataError, match="Sentence 2 of the training text has the word") as raised:
        KneserNey().fit([["a", "b"], ["c", word], ["d"]])
    assert repr(word) in str(raised.value)
