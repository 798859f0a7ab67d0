from __future__ import annotations

import copy
import functools
import itertools
import pickle

import numpy as np
import pytest
import torch
from torchaudio.functional import forced_align, merge_tokens

from asr.decoders import Beam
from asr.decoders.search import search
from asr.errors import ConfigError, DataError
from asr.lm import Ngram
from asr.testing import check_decoder
from asr.tokenizers import Characters, SentencePiece, Words
from asr.types import Emissions
from tests.decoders.exhaustive import LABEL_MODEL, WORD_MODEL, all_sequences, best_of_each_text, fused

ENDLESS = {
    "beam": 2000,
    "beam_threshold": 1e9,
    "label_threshold": 1e9,
    "nbest": 100_000,
    "recombine": False,
    "threads": 1,
}
"""Options that prune nothing."""
LETTERS = Characters(labels=[" ", "a", "b"])


class Pieces:
    """Subwords with which a word can be spelled in several ways."""

    labels = ("<blank>", "▁", "▁a", "b", "ab")
    word_starts = (False, True, True, False, False)

    def __len__(self):
        return len(self.labels)

    def decode(self, labels):
        return "".join(self.labels[label] for label in labels).replace("▁", " ").strip()

    def unknown(self, text):
        return [letter for letter in text if letter not in "ab "]

    def encode(self, text):
        return [label for word in text.split() for label in (1, *(3 if letter == "b" else 2 for letter in word))]


def write_arpa(path, model, unit="words"):
    order = max(map(len, model))
    lines = ["\\data\\", *(f"ngram {n}={sum(len(k) == n for k in model)}" for n in range(1, order + 1)), ""]
    for n in range(1, order + 1):
        lines.append(f"\\{n}-grams:")
        for words, (log_prob, backoff) in model.items():
            if len(words) == n:
                lines.append(f"{log_prob}\t{' '.join(words)}" + (f"\t{backoff}" if n < order else ""))
        lines.append("")
    path.write_text("\n".join([*lines, "\\end\\", ""]))
    loaded = Ngram.load(path)
    return loaded if unit == "words" else Ngram(**{**vars(loaded), "unit": unit})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    return {
        "lm": write_arpa(folder / "words.arpa", WORD_MODEL),
        "label_lm": write_arpa(folder / "labels.arpa", LABEL_MODEL, "labels"),
    }


def random_emissions(length, labels, seed, batch=1, sharpness=1.5) -> Emissions:
    logits = np.random.default_rng(seed).normal(0, sharpness, (batch, length, labels))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return Emissions(log_probs.astype(np.float32), np.full(batch, length), 0.04)


OPTIONS = {
    "plain": {},
    "lengths": {"word_score": 0.7, "label_score": -0.3},
    "word model": {"lm": True, "lm_weight": 0.8, "word_score": 0.4, "unknown_score": -1.0},
    "word model, its words only": {"lm": True, "lm_weight": 0.8, "open_vocabulary": False},
    "label model": {"label_lm": True, "label_lm_weight": 0.6, "label_score": 0.2},
    "lexicon": {"lexicon": ["a", "abb"], "open_vocabulary": False},
    "preferred lexicon": {"lexicon": ["a", "bab"], "unknown_score": -2.0, "word_score": 0.5},
    "lexicon and model": {"lexicon": ["a", "ab", "bb"], "lm": True, "lm_weight": 0.5, "open_vocabulary": False},
    "hotwords": {"hotwords": {"ab": 2.0, "b a": 3.0, "a": -1.0, "a b a": 1.5}},
    "hotwords and a closed lexicon": {"lexicon": ["a"], "hotwords": {"bb a": 1.0}, "open_vocabulary": False},
    "all": {
        "lm": True, "label_lm": True, "lexicon": ["a", "b", "bb"], "hotwords": ["b a", "bb"], "hotword_weight": 1.3,
        "lm_weight": 0.4, "label_lm_weight": 0.3, "word_score": -0.2, "label_score": 0.1, "unknown_score": -0.7,
    },
}  # fmt: skip


@pytest.mark.parametrize("length", [1, 4, 6])
@pytest.mark.parametrize("tokenizer", [LETTERS, Pieces()], ids=["characters", "pieces"])
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_sums_over_all_alignments(name, tokenizer, length, models):
    options = OPTIONS[name]
    if tokenizer is not LETTERS and "label_lm" in options:
        pytest.skip("the label model is of characters")
    if tokenizer is not LETTERS and length == 6:
        length = 5  # 5^6 alignments in Python take a while
    emissions = random_emissions(length, len(tokenizer), seed=length)
    given = {key: models[key] if value is True and key in models else value for key, value in options.items()}
    decoder = Beam(tokenizer, **ENDLESS, **given)
    scored = {}
    for labels, acoustic in all_sequences(emissions).items():
        earned = fused(labels, tokenizer, options)
        if earned is not None:
            scored[labels] = (acoustic + earned[0], acoustic, earned[1])
    wanted = best_of_each_text(scored, tokenizer)
    found = {h.labels: (h.score, h.acoustic_score, h.lm_score) for h in decoder(emissions)[0]}
    assert found.keys() == wanted.keys()
    for labels, scores in wanted.items():
        assert found[labels] == pytest.approx(scores, abs=1e-4), tokenizer.decode(list(labels))


def test_labels_below_the_threshold_count_as_impossible():
    emissions = random_emissions(6, 4, seed=3, sharpness=2.5)
    found = Beam(LETTERS, **{**ENDLESS, "label_threshold": 2.0})(emissions)[0]
    log_probs = emissions.log_probs.copy()
    pruned = log_probs < log_probs.max(-1, keepdims=True) - 2.0
    pruned[..., 0] = False
    assert pruned.any(-1).sum() > 3
    log_probs[pruned] = -np.inf
    wanted = best_of_each_text(all_sequences(Emissions(log_probs, emissions.lengths, 0.04)), LETTERS)
    assert {h.labels: h.score for h in found} == pytest.approx(wanted, abs=1e-4)


def test_silence_changes_nothing_but_times():
    speech = random_emissions(30, 4, seed=4)
    blank = np.log(np.array([1 - 3e-6, 1e-6, 1e-6, 1e-6], np.float32))
    silence = np.broadcast_to(blank, (1, 500, 4))
    longer = Emissions(np.concatenate([silence, speech.log_probs, silence], 1), np.array([1030]), 0.04)
    decoder = Beam(LETTERS, nbest=5, threads=1)
    for one, other in zip(decoder(speech)[0], decoder(longer)[0], strict=True):
        assert one.labels == other.labels and other.score == pytest.approx(one.score, abs=0.01)
        assert [w.start + 20.0 for w in one.words] == pytest.approx([w.start for w in other.words])
        assert [w.end + 20.0 for w in one.words] == pytest.approx([w.end for w in other.words])


@functools.cache
def speechlike(length, seed, tokenizer=LETTERS) -> Emissions:
    """Words of a, b and spaces, mostly blank, with doubts."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 1.0, (1, length, len(tokenizer)))
    logits[..., 0] += 2.5
    for t in range(3, length - 2, 4):
        logits[0, t, draw.integers(1, len(tokenizer))] += 5.5
    return Emissions(
        (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32), np.array([length]), 0.04
    )


@pytest.mark.parametrize("name", ["plain", "word model", "all"])
@pytest.mark.parametrize("nbest", [1, 5])
@pytest.mark.parametrize("sizes", [(1,), (7, 1, 30), (0, 200)])
def test_a_stream_ends_as_the_whole(name, sizes, nbest, models):
    options = {key: models[key] if value is True and key in models else value for key, value in OPTIONS[name].items()}
    decoder = Beam(LETTERS, beam=20, nbest=nbest, **options)
    whole = speechlike(900, seed=5)
    state, words, at = decoder.start(), [], 0
    for size in itertools.cycle(sizes):
        part = whole.log_probs[:, at : at + size]
        words.extend(decoder.step(Emissions(part, np.array([part.shape[1]]), 0.04), state).words)
        at += size
        if at >= 900:
            break
    found = decoder.finish(state)
    assert found == decoder(whole)[0]
    assert nbest > 1 or len(words) > 0.9 * len(found[0].words), "words become final on the way"
    assert tuple(words) == found[0].words[: len(words)]


def test_partial_results_come_after_each_step():
    decoder = Beam(LETTERS, beam=20)
    whole = speechlike(400, seed=6)
    state, final, late = decoder.start(), "", 0
    for at in range(0, 400, 25):
        partial = decoder.step(Emissions(whole.log_probs[:, at : at + 25], np.array([25]), 0.04), state)
        final = " ".join([final, *(word.text for word in partial.words)]).strip()
        so_far = decoder(Emissions(whole.log_probs[:, : at + 25], np.array([at + 25]), 0.04))[0][0].text
        late += " ".join(f"{final} {partial.tentative}".split()) != " ".join(so_far.split())
    assert late <= 1, "what is shown is the best so far"


def test_a_long_stream_keeps_no_more_than_a_short_one():
    decoder = Beam(LETTERS, beam=20)
    part = speechlike(500, seed=7)
    state, sizes = decoder.start(), []
    for _ in range(60):
        decoder.step(part, state)
        sizes.append((len(state.links), state.used, len(state.pending)))
    assert len({size[0] for size in sizes}) == 1
    assert max(size[1] for size in sizes[30:]) <= 2 * max(size[1] for size in sizes[:30])


def test_a_batch_is_decoded_as_each_alone(models):
    emissions = random_emissions(40, 4, seed=8, batch=6)
    emissions = Emissions(emissions.log_probs, np.array([40, 3, 0, 17, 40, 1]), 0.04)
    options = {"lm": models["lm"], "nbest": 3}
    together = Beam(LETTERS, threads=4, **options)(emissions)
    single = Beam(LETTERS, threads=1, **options)
    for k, length in enumerate(emissions.lengths):
        alone = single(Emissions(emissions.log_probs[k : k + 1, :length], np.array([length]), 0.04))
        assert alone[0] == together[k]
    assert together[2][0].text == "" and together[2][0].words == ()


@pytest.mark.parametrize("seed", range(5))
def test_times_are_those_of_the_best_alignment(seed):
    emissions = speechlike(120, seed=seed)
    best = Beam(LETTERS, label_threshold=1e9, beam_threshold=1e9)(emissions)[0][0]
    paths, scores = forced_align(torch.from_numpy(emissions.log_probs), torch.tensor([best.labels]))
    spans = merge_tokens(paths[0], scores[0])
    starts, ends, space = [], [], None
    for before, span in itertools.pairwise([None, *spans]):
        if span.token == 1:
            space = span if before and before.end == span.start else None
        elif before is None or before.token == 1:  # a word begins, with the space if there is no blank about it
            starts.append(space.start if space and space.end == span.start else span.start)
            ends.append(span.end)
        else:
            ends[-1] = span.end
    assert [w.start for w in best.words] == pytest.approx([round(start * 0.04, 3) for start in starts])
    assert [w.end for w in best.words] == pytest.approx([round(end * 0.04, 3) for end in ends])


def test_a_hotword_is_found_by_its_weight():
    sure = np.full((1, 9, 4), 0.02)
    for t, label in enumerate([2, 0, 3, 0, 1, 0, 3, 0, 2]):  # "ab ba"; the last word is as well "b"
        sure[0, t, label] = 0.94
    sure[0, 8] = [0.55, 0.01, 0.43, 0.01]
    emissions = Emissions(np.log(sure).astype(np.float32), np.array([9]), 0.04)
    assert Beam(LETTERS)(emissions)[0][0].text == "ab b"
    assert Beam(LETTERS, hotwords={"ba": 1.0})(emissions)[0][0].text == "ab ba"
    assert Beam(LETTERS, hotwords={"ab ba": 1.0})(emissions)[0][0].text == "ab ba"
    assert Beam(LETTERS, hotwords={"ba a": 9.0})(emissions)[0][0].text == "ab b", "what is only begun earns nothing"


def test_hotwords_and_lexicon_from_files(tmp_path):
    (tmp_path / "words.txt").write_text("ab a b\nb b\n")
    (tmp_path / "hot.txt").write_text("b ab\t2.5\nab\n")
    from_files = Beam(
        LETTERS, lexicon=str(tmp_path / "words.txt"), hotwords=str(tmp_path / "hot.txt"), open_vocabulary=False
    )
    given = Beam(LETTERS, lexicon=["ab", "b"], hotwords={"b ab": 2.5, "ab": 5.0}, open_vocabulary=False)
    emissions = speechlike(100, seed=9)
    assert from_files(emissions) == given(emissions)
    assert set(given(emissions)[0][0].text.split()) == {"ab", "b"}


def test_a_closed_vocabulary_never_ends_in_half_a_word():
    """The only path leads into "ab" and no further."""
    emissions = np.full((1, 5, 4), -50.0, np.float32)
    emissions[0, np.arange(5), [2, 3, 1, 0, 2]] = 0.0
    closed = {"lexicon": ["ab"], "open_vocabulary": False, "label_threshold": 5.0}
    [[found]] = Beam(LETTERS, **closed)(Emissions(emissions, np.array([5]), 0.04))
    assert found.text == "ab" and [word.text for word in found.words] == ["ab"]
    [[nothing]] = Beam(LETTERS, **closed)(Emissions(emissions[:, 4:], np.array([1]), 0.04))
    assert nothing.text == ""


def test_every_spelling_of_a_word_counts():
    """Subwords: "ab" is known, whether it is spelled ▁a b, or ab; a list has it once, in the likelier spelling."""
    decoder = Beam(Pieces(), lexicon=["ab"], open_vocabulary=False, **ENDLESS)
    for path in ((4, 0), (4, 1), (2, 3)):
        emissions = random_emissions(2, 5, seed=10)
        emissions.log_probs[0, (0, 1), path] = 0.0
        found = [(h.text, h.labels) for h in decoder(emissions)[0]]
        assert found == [("ab", tuple(label for label in path if label)), ("", ())]


def test_a_space_beside_a_space_is_one():
    emissions = random_emissions(5, 5, seed=3)
    emissions.log_probs[0, range(5), [2, 0, 1, 0, 2]] += 20
    texts = [hypothesis.text for hypothesis in Beam(Pieces(), **ENDLESS)(emissions)[0]]
    assert texts[0] == "a a" and len(set(texts)) == len(texts)
    assert all(text == " ".join(text.split()) for text in texts)


def test_holds_the_contract(models):
    check_decoder(Beam(LETTERS, nbest=4), LETTERS)
    words = Words(["yes", "no", "maybe"])
    check_decoder(Beam(words, lexicon=["yes", "no", "maybe"], open_vocabulary=False), words)
    pieces = SentencePiece(vocab_size=13)
    pieces.fit(["one two three four", "two one four", "three three one"] * 5)
    check_decoder(Beam(pieces, lexicon=["one", "two"]), pieces)


BAD = {
    "beam": ({"beam": 0}, "decoder.beam=0"),
    "threshold": ({"beam_threshold": 0.0}, "above 0"),
    "unknown_score": ({"unknown_score": 1.0}, "0 or less"),
    "closed over nothing": ({"open_vocabulary": False}, "which words"),
    "lexicon word": ({"lexicon": ["ab", "abc"]}, "'abc' cannot be spelled: no label has 'c'"),
    "hotword": ({"hotwords": ["ab", "dab"]}, "'dab' cannot be spelled: no label has 'd'"),
    "two words": ({"lexicon": ["a b"]}, "'a b' is not one word"),
    "a lexicon of booleans": ({"lexicon": [True]}, "True is not one word. Put it in quotes"),
    "a hotword that is a number": ({"hotwords": [2020]}, "2020 is not a phrase"),
    "a weight that is none": ({"hotwords": {"a": "x"}}, "'x' is not a weight"),
    "an infinite score": ({"word_score": float("inf")}, "must be a finite number"),
    "not a number": ({"beam_threshold": float("nan")}, "decoder.beam_threshold=nan"),
    "no end": ({"beam_threshold": float("inf")}, "decoder.beam_threshold=inf: must be above 0, and finite"),
    "threads": ({"threads": -1}, "decoder.threads=-1"),
    "no such model": ({"lm": "nowhere.arpa"}, r"decoder\.lm=nowhere\.arpa: No such file"),
    "no lexicon file": ({"lexicon": "nowhere.txt"}, "nowhere.txt cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_named(name):
    options, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        Beam(LETTERS, **options)


def test_words_that_are_several_to_the_labels():
    """Each Chinese character is a word: a word of two cannot be spelled."""
    chinese = Characters(labels="北京我爱")
    with pytest.raises(
        ConfigError, match="'北京' cannot be spelled: in the tokenizer's labels it is more than one word"
    ):
        Beam(chinese, lexicon=["北京", "我"])
    assert Beam(chinese, lexicon=["北", "京", "我"])
    with pytest.raises(ConfigError, match="'onetwo' cannot be spelled"):
        Beam(Words(["one", "two"]), lexicon=["onetwo"])


def test_a_label_that_says_nothing_does_not_leave_the_lexicon():
    class Marked(Pieces):
        labels = ("<blank>", "▁", "▁a", "b", "~")

        def decode(self, labels):
            return super().decode(labels).replace("~", "")

    sure = np.full((1, 3, 5), 0.01)
    sure[0, np.arange(3), [2, 4, 3]] = 0.96
    emissions = Emissions(np.log(sure).astype(np.float32), np.array([3]), 0.04)
    [[found]] = Beam(Marked(), lexicon=["ab"], open_vocabulary=False)(emissions)
    assert found.labels == (2, 4, 3)


def test_nothing_possible_is_nothing_recognized():
    emissions = np.full((1, 2, 4), -np.inf, np.float32)
    emissions[..., 3] = 0.0
    [[found]] = Beam(LETTERS, lexicon=["a"], open_vocabulary=False)(Emissions(emissions, np.array([2]), 0.04))
    assert found.text == ""


def test_it_is_compiled_once(models):
    """A second compilation would take seconds in the middle of a run."""
    emissions = speechlike(20, seed=1)
    frozen = Emissions(emissions.log_probs.copy(), emissions.lengths, 0.04)
    frozen.log_probs.flags.writeable = False
    decoder = Beam(LETTERS, lm=models["lm"])
    wanted = decoder(emissions)
    compiled = len(search.signatures)
    assert copy.deepcopy(decoder)(frozen) == wanted
    assert pickle.loads(pickle.dumps(decoder))(emissions) == wanted
    Beam(LETTERS, open_vocabulary=1, lexicon=["a"], hotwords=["b"])(emissions)
    assert len(search.signatures) == compiled


def test_a_model_of_another_unit_is_refused(models, tmp_path):
    with pytest.raises(ConfigError, match=r"decoder\.lm: a model of labels, but here goes one of words"):
        Beam(LETTERS, lm=models["label_lm"])
    with pytest.raises(ConfigError, match=r"decoder\.label_lm: a model of words"):
        Beam(LETTERS, label_lm=models["lm"])
    foreign = write_arpa(
        tmp_path / "x.arpa", {("<unk>",): (-1, 0), ("<s>",): (-9, 0), ("</s>",): (-1, 0), ("xy",): (-1, 0)}
    )
    with pytest.raises(ConfigError, match="1 of its 1 words cannot be spelled, such as 'xy': no label has 'x'"):
        Beam(LETTERS, lm=foreign)
    letters = {key: value for key, value in LABEL_MODEL.items() if "<space>" not in key}
    write_arpa(tmp_path / "letters.arpa", letters)
    with pytest.raises(ConfigError, match="all its words are labels of the tokenizer, such as 'b'"):
        Beam(LETTERS, lm=str(tmp_path / "letters.arpa"))
    assert Beam(LETTERS, label_lm=str(tmp_path / "letters.arpa"))
    with pytest.raises(ConfigError, match="does not know 3 of the tokenizer's 3 labels"):
        Beam(LETTERS, label_lm=Ngram(**{**vars(foreign), "unit": "labels"}))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_emissions_are_an_error(value):
    emissions = random_emissions(10, 4, seed=11)
    emissions.log_probs[0, 6, 2] = value
    with pytest.raises(DataError, match="frame 6"):
        Beam(LETTERS)(emissions)
