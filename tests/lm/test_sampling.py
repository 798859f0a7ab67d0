from __future__ import annotations

import math

import pytest
import torch

from asr.errors import ConfigError
from asr.lm import Ngram
from asr.lm.lstm import Lstm
from asr.lm.sampling import spell

BIGRAMS = """\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-1.0\t<unk>\t0
-0.5\t<s>\t-0.3
-0.5\t</s>
-0.45\ta\t-0.2
-0.9\tb\t-0.3

\\2-grams:
-0.2\t<s> a
-0.4\ta b
-0.3\tb </s>

\\end\\
"""


@pytest.fixture(params=["ngram", "lstm"])
def model(request, tmp_path):
    if request.param == "ngram":
        (tmp_path / "lm.arpa").write_text(BIGRAMS)
        return Ngram.load(tmp_path / "lm.arpa")
    torch.manual_seed(0)
    lstm = Lstm(["<unk>", "<s>", "</s>", "a", "b", "c"], width=12)
    for parameter in lstm.parameters():
        torch.nn.init.normal_(parameter, 0, 0.7)
    return lstm.eval()


def following(model, context) -> dict[str, float]:
    """The probability of each word after a context, and of the end: of all but `<s>`."""
    words = [word for word in model.vocabulary if word not in ("<s>", "</s>")]
    found = {word: math.exp(model.word_log_probs([*context, word], eos=False)[-1]) for word in words}
    found["</s>"] = math.exp(model.word_log_probs(context)[-1])
    return {word: value / sum(found.values()) for word, value in found.items()}


def test_samples_follow_the_probabilities(model):
    drawn = model.sample(4000, seed=1)
    assert drawn == model.sample(4000, seed=1) != model.sample(4000, seed=2)
    sentences = [[*sentence.split(), "</s>"] for sentence in drawn]
    for context in ([], ["a"], ["b"]):
        next_words = [sentence[len(context)] for sentence in sentences if sentence[: len(context)] == context]
        for word, probability in following(model, context).items():
            error = math.sqrt(probability * (1 - probability) / len(next_words))
            share = next_words.count(word) / len(next_words)
            assert share == pytest.approx(probability, abs=4 * error), (context, word)


def test_a_low_temperature_gives_the_likeliest(model):
    assert len({*model.sample(20, temperature=0.001)}) == 1
    with pytest.raises(ConfigError, match="temperature=0"):
        model.sample(1, temperature=0)


def test_labels_are_put_together():
    assert spell(["a", "a", "<space>", "a"], "labels", ["<space>", "a"]) == "aa a"
    assert spell(["▁a", "b", "▁a"], "labels", ["▁a", "b"]) == "ab a"
    assert spell(["yes", "no"], "labels", ["yes", "no"]) == "yes no"
    assert spell(["▁a", "b"], "words", ["▁a", "b"]) == "▁a b"
