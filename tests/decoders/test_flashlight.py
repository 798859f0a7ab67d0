from __future__ import annotations

import itertools
import math
import pickle
import sys

import numpy as np
import pytest

from asr.decoders import Flashlight
from asr.errors import ConfigError, DataError
from asr.lm import Ngram
from asr.testing import check_decoder
from asr.tokenizers import Characters, SentencePiece, Words
from asr.types import Emissions

LETTERS = Characters(labels=[" ", "a", "b"])
ENDLESS = {"beam": 2000, "beam_threshold": 1e9, "nbest": 100_000}
ARPA = """\\data\\
ngram 1=6
ngram 2=3

\\1-grams:
-1.5\t<unk>\t0
-99\t<s>\t-0.4
-0.8\t</s>\t0
-0.5\ta\t-0.3
-0.9\tab\t-0.2
-1.2\tc\t0

\\2-grams:
-0.2\t<s> a
-0.3\ta ab
-0.1\tab </s>

\\end\\
"""


@pytest.fixture(autouse=True)
def installed(request):
    if "without_the_package" not in request.node.name:
        pytest.importorskip("flashlight.lib.text", reason="flashlight-text is not installed")


@pytest.fixture
def arpa(tmp_path):
    (tmp_path / "lm.arpa").write_text(ARPA)
    return tmp_path / "lm.arpa"


def random_emissions(length: int, seed: int, labels: int = 4) -> Emissions:
    logits = np.random.default_rng(seed).normal(0, 1.5, (1, length, labels))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return Emissions(log_probs.astype(np.float32), np.array([length]), 0.04)


def emissions_of(path: list[int], sure: float = 0.94) -> Emissions:
    probs = np.full((1, len(path), 4), (1 - sure) / 3)
    probs[0, np.arange(len(path)), path] = sure
    return Emissions(np.log(probs).astype(np.float32), np.array([len(path)]), 0.04)


def texts_of(emissions: Emissions, words: set[str] | None) -> dict[str, float]:
    """Each text's log-probability, summed over every alignment one by one."""
    log_probs, found = emissions.log_probs[0].astype(np.float64), {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        text = " ".join(LETTERS.decode([label for label, _ in itertools.groupby(path) if label]).split())
        if words is None or words.issuperset(text.split()):
            score = log_probs[np.arange(len(path)), list(path)].sum()
            found[text] = np.logaddexp(found.get(text, -np.inf), score)
    return found


@pytest.mark.parametrize("length", [1, 4, 6])
@pytest.mark.parametrize("name", ["lexicon", "model", "lexicon and model"])
def test_scores_words_by_all_their_alignments_and_the_model(name, length, arpa):
    lexicon = None if name == "model" else ["a", "abb", "b"]
    lm = None if name == "lexicon" else arpa
    options = {"lexicon": lexicon, "lm": lm, "lm_weight": 0.8, "word_score": 0.4}
    emissions = random_emissions(length, seed=length)
    wanted = texts_of(emissions, set(lexicon or ["a", "ab"]))
    found = {h.text: h for h in Flashlight(LETTERS, **ENDLESS, **options)(emissions)[0]}
    assert found.keys() == wanted.keys()
    for text, acoustic in wanted.items():
        earned = 0.8 * Ngram.load(arpa).score(text.split()) if lm else 0.0
        scores = (acoustic + earned + 0.4 * len(text.split()), acoustic, earned)
        assert (found[text].score, found[text].acoustic_score, found[text].lm_score) == pytest.approx(scores, abs=1e-4)


def test_without_words_it_scores_label_sequences():
    emissions = random_emissions(5, seed=2)
    found = {h.labels: h.score for h in Flashlight(LETTERS, **ENDLESS)(emissions)[0]}
    wanted: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(4), repeat=5):
        labels = tuple(label for label, _ in itertools.groupby(path) if label)
        score = emissions.log_probs[0, np.arange(5), list(path)].sum()
        wanted[labels] = np.logaddexp(wanted.get(labels, -np.inf), score)
    assert found == pytest.approx(wanted, abs=1e-4)


def test_the_best_alignment_alone_scores_less():
    emissions = random_emissions(6, seed=3)
    best = Flashlight(LETTERS, **ENDLESS, log_add=False)(emissions)[0][0]
    assert best.score == pytest.approx(emissions.log_probs[0].max(-1).sum(), abs=1e-4)
    assert best.score < Flashlight(LETTERS, **ENDLESS)(emissions)[0][0].score


@pytest.mark.parametrize("tail", [[], [1], [1, 0, 0]], ids=["mid-word", "space", "silence"])
def test_times_are_those_of_the_alignment(tail):
    path = [1, 0, 2, 2, 3, 0, 0, 1, 3, 3, 0, *tail]  # "ab b"
    best = Flashlight(LETTERS, lexicon=["ab", "b"])(emissions_of(path))[0][0]
    assert best.text == "ab b"
    assert [(w.text, w.start, w.end) for w in best.words] == [("ab", 0.08, 0.2), ("b", 0.32, 0.4)]
    assert [w.confidence for w in best.words] == pytest.approx([0.94, 0.94], abs=1e-3)
    assert best.labels == tuple(label for label, _ in itertools.groupby(path) if label)


def test_unknown_words_earn_their_score():
    emissions = emissions_of([2, 0, 1, 2, 3, 0])  # "a ab", where only "ab" is known
    assert Flashlight(LETTERS, lexicon=["ab"])(emissions)[0][0].text == "ab"
    [best] = Flashlight(LETTERS, lexicon=["ab"], unknown_score=-1.0, word_score=0.5)(emissions)[0]
    assert best.text == "a ab"
    assert best.score == pytest.approx(best.acoustic_score + 2 * 0.5 - 1.0, abs=1e-4)


def test_a_model_as_file_folder_or_object_is_the_same(arpa, tmp_path):
    model = Ngram.load(arpa)
    model.save(tmp_path / "folder")
    emissions = random_emissions(30, seed=5)
    for lm in (tmp_path / "folder", model):
        [best], [same] = Flashlight(LETTERS, lm=str(arpa))(emissions)[0], Flashlight(LETTERS, lm=lm)(emissions)[0]
        assert best.words == same.words and best.lm_score == pytest.approx(same.lm_score, abs=1e-5)


def test_a_lexicon_is_read_from_a_file(tmp_path):
    (tmp_path / "words.txt").write_text("ab a b\nb b\n")
    emissions = random_emissions(30, seed=6)
    from_file = Flashlight(LETTERS, lexicon=str(tmp_path / "words.txt"))(emissions)
    assert from_file == Flashlight(LETTERS, lexicon=["ab", "b"])(emissions)
    assert set(from_file[0][0].text.split()) == {"ab", "b"}


def test_it_can_be_pickled(arpa):
    decoder = Flashlight(LETTERS, lm=str(arpa), lexicon=["ab", "b"], nbest=2)
    emissions = random_emissions(30, seed=7)
    assert pickle.loads(pickle.dumps(decoder))(emissions) == decoder(emissions)


def test_half_a_word_where_no_other_hypothesis_is_left():
    decoder = Flashlight(LETTERS, beam=1, lexicon=["abab"])
    [best] = decoder(emissions_of([2, 3], sure=0.99))[0]
    assert best.text == "ab"
    assert best.score == pytest.approx(2 * math.log(0.99), abs=1e-3)


def test_holds_the_contract(arpa):
    check_decoder(Flashlight(LETTERS, nbest=4), LETTERS)
    check_decoder(Flashlight(LETTERS, nbest=4, lexicon=["aa", "ab", "b"]), LETTERS)
    check_decoder(Flashlight(LETTERS, nbest=4, lm=arpa, lexicon=["aa", "ab", "b"]), LETTERS)
    words = Words(["yes", "no", "maybe"])
    check_decoder(Flashlight(words), words)
    pieces = SentencePiece(vocab_size=13)
    pieces.fit(["one two three four", "two one four", "three three one"] * 5)
    check_decoder(Flashlight(pieces), pieces)


BAD = {
    "beam": ({"beam": 0}, "decoder.beam=0"),
    "labels": ({"beam_size_token": 0}, "decoder.beam_size_token=0"),
    "threshold": ({"beam_threshold": -1.0}, "decoder.beam_threshold=-1.0"),
    "unknown_score": ({"lexicon": ["a"], "unknown_score": 1.0}, "0 or less"),
    "words without words": ({"word_score": 1.0}, "decoder.lexicon= or decoder.lm="),
    "lexicon word": ({"lexicon": ["ab", "abc"]}, "'abc' cannot be spelled: no label has 'c'"),
    "two words in one": ({"lexicon": ["a b"]}, "'a b' is not one word"),
    "no lexicon file": ({"lexicon": "nowhere.txt"}, "nowhere.txt cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_named(name):
    options, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        Flashlight(LETTERS, **options)


def test_a_broken_kenlm_binary_is_named(tmp_path):
    (tmp_path / "lm.bin").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(50))
    with pytest.raises(ConfigError, match=r"decoder\.lexicon: which words"):
        Flashlight(LETTERS, lm=tmp_path / "lm.bin")
    with pytest.raises(ConfigError, match=r"decoder\.lm: .*lm\.bin: KenLM cannot read it"):
        Flashlight(LETTERS, lm=tmp_path / "lm.bin", lexicon=["a"])


def test_words_need_a_label_for_the_space():
    words = Words(["yes", "no"])
    with pytest.raises(ConfigError, match="a label for the space"):
        Flashlight(words, lexicon=["yes"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_emissions_are_an_error(value):
    emissions = random_emissions(10, seed=11)
    emissions.log_probs[0, 6, 2] = value
    with pytest.raises(DataError, match="frame 6"):
        Flashlight(LETTERS)(emissions)


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    import torchaudio.models.decoder as decoder

    for name in ("ctc_decoder", "_ctc_decoder"):  # what an import before has left
        monkeypatch.delitem(vars(decoder), name, raising=False)
    monkeypatch.delitem(sys.modules, "torchaudio.models.decoder._ctc_decoder", raising=False)
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder", None)
    with pytest.raises(ConfigError, match=r"pip install 'asr-pipeline\[flashlight\]'"):
        Flashlight(LETTERS)
