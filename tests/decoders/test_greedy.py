from __future__ import annotations

import math
import random

import numpy as np
import pytest

from asr.decoders import Greedy
from asr.decoders.greedy import GreedyState
from asr.errors import DataError
from asr.tokenizers import Characters, SentencePiece, Words
from asr.types import Emissions, Word


def emissions(lengths, labels, seed=0, frame_seconds=0.04) -> Emissions:
    """Random log-probabilities in which blanks and repetitions are frequent; NaN past an utterance's end."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(len(lengths), max(lengths), labels))
    logits[:, 1::3] = logits[:, : logits[:, 1::3].shape[1] * 3 : 3]  # every third frame repeats the one before
    logits[..., 0] += 1.5
    log_probs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
    for row, length in enumerate(lengths):
        log_probs[row, length:] = np.nan
    return Emissions(log_probs, np.array(lengths), frame_seconds)


def path(*frames: tuple[int, float], labels: int) -> Emissions:
    """One utterance from (likeliest label, its posterior) of each frame."""
    probabilities = np.zeros((1, len(frames), labels))
    for t, (label, posterior) in enumerate(frames):
        probabilities[0, t] = (1 - posterior) / (labels - 1)
        probabilities[0, t, label] = posterior
    return Emissions(np.log(probabilities).astype(np.float32), np.array([len(frames)]), 0.04)


def naive(log_probs, length) -> tuple[list[int], float]:
    labels, score, before = [], 0.0, 0
    for frame in log_probs[:length]:
        best = max(range(len(frame)), key=lambda label: frame[label])
        score += float(frame[best])
        if best not in (0, before):
            labels.append(best)
        before = best
    return labels, score


def sentencepiece() -> SentencePiece:
    tokenizer = SentencePiece(vocab_size=13)
    tokenizer.fit(["one two three four", "two one four", "three three one"] * 5)
    return tokenizer


TOKENIZERS = {
    "characters": Characters(" abc'"),
    "words": Words(["yes", "no", "maybe"]),
    "sentencepiece": sentencepiece(),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("seed", range(5))
def test_equals_a_naive_loop(kind, seed):
    tokenizer = TOKENIZERS[kind]
    lengths = [int(n) for n in np.random.default_rng(seed).integers(1, 60, 8)]
    batch = emissions(lengths, len(tokenizer), seed)
    found = Greedy(tokenizer)(batch)
    assert len(found) == 8
    for row, (hypothesis,) in enumerate(found):
        labels, score = naive(batch.log_probs[row], lengths[row])
        assert list(hypothesis.labels) == labels
        assert hypothesis.text == " ".join(tokenizer.decode(labels).split())
        assert hypothesis.score == pytest.approx(score, rel=1e-5)
        assert " ".join(word.text for word in hypothesis.words) == hypothesis.text
        times = [t for word in hypothesis.words for t in (word.start, word.end)]
        assert times == sorted(times) and all(0 <= t <= lengths[row] * 0.04 + 1e-9 for t in times)
        assert all(0 < word.confidence <= 1 for word in hypothesis.words)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_batch_makes_no_difference(kind):
    decoder = Greedy(TOKENIZERS[kind])
    batch = emissions([30, 5, 60], len(TOKENIZERS[kind]))
    together = decoder(batch)
    for row, length in enumerate([30, 5, 60]):
        one = Emissions(batch.log_probs[row : row + 1, :length], batch.lengths[row : row + 1], 0.04)
        assert decoder(one)[0] == together[row]


def test_repetitions_and_blanks():
    tokenizer = Words(["a", "b"])
    frames = [1, 1, 0, 1, 2, 2, 0, 0, 2, 1]
    [[hypothesis]] = Greedy(tokenizer)(path(*((k, 0.9) for k in frames), labels=3))
    assert hypothesis.labels == (1, 1, 2, 2, 1) and hypothesis.text == "a a b b a"
    assert hypothesis.score == pytest.approx(10 * math.log(0.9), rel=1e-5)


def test_word_times_and_confidence_of_characters():
    tokenizer = Characters([" ", "a", "b"])
    space, a, b = 1, 2, 3
    frames = [(0, 0.9), (a, 0.5), (a, 0.8), (b, 0.7), (space, 0.99), (space, 0.9), (0, 0.6), (b, 0.6), (0, 0.9)]
    [[hypothesis]] = Greedy(tokenizer)(path(*frames, labels=4))
    first, second = hypothesis.words
    assert hypothesis.text == "ab b"
    # the best posterior of each run, the geometric mean over labels; the space belongs to neither
    assert first == Word("ab", 0.04, 0.16, pytest.approx(math.sqrt(0.8 * 0.7), rel=1e-5))
    assert second == Word("b", 0.28, 0.32, pytest.approx(0.6, rel=1e-5))


def test_without_a_pause_the_space_belongs_to_the_word_after_it():
    tokenizer = Characters([" ", "a", "b"])
    space, a, b = 1, 2, 3
    frames = [(k, 0.9) for k in (space, a, space, space, b, space, 0, a, 0, space, a)]
    [[hypothesis]] = Greedy(tokenizer)(path(*frames, labels=4))
    assert [(word.text, word.start, word.end) for word in hypothesis.words] == [
        ("a", 0.04, 0.08),  # before it there is no word
        ("b", 0.08, 0.2),
        ("a", 0.28, 0.32),
        ("a", 0.4, 0.44),
    ]


def test_word_times_of_words():
    tokenizer = Words(["yes", "no"])
    frames = [(1, 0.5), (0, 0.9), (2, 0.6), (2, 0.8), (1, 0.7)]
    [[hypothesis]] = Greedy(tokenizer)(path(*frames, labels=3))
    assert [(word.text, word.start, word.end) for word in hypothesis.words] == [
        ("yes", 0.0, 0.04),
        ("no", 0.08, 0.16),
        ("yes", 0.16, 0.2),
    ]
    assert [word.confidence for word in hypothesis.words] == pytest.approx([0.5, 0.8, 0.7], rel=1e-5)


def test_words_of_pieces():
    """A word begins with a piece that begins with a space; a lone space belongs to the word after it."""
    tokenizer = TOKENIZERS["sentencepiece"]
    draw = random.Random(0)
    for _ in range(20):
        text = " ".join(draw.choices(["one", "two", "three", "four"], k=4))
        frames = [(k, 0.9) for label in tokenizer.encode(text) for k in (label, 0)]
        [[hypothesis]] = Greedy(tokenizer)(path(*frames, labels=len(tokenizer)))
        assert hypothesis.text == text
        assert [word.text for word in hypothesis.words] == text.split()


def test_chinese_characters_are_words():
    tokenizer = Characters("今天好")
    [[hypothesis]] = Greedy(tokenizer)(path((1, 0.9), (2, 0.9), (3, 0.9), labels=4))
    assert hypothesis.text == "今天好" and [word.text for word in hypothesis.words] == ["今", "天", "好"]


@pytest.mark.parametrize("label", [0, 1])
def test_nothing_but_blanks_or_spaces(label):
    [[hypothesis]] = Greedy(Characters([" ", "a"]))(path(*[(label, 0.9)] * 4, labels=3))
    assert hypothesis.text.strip() == "" and hypothesis.words == ()
    assert hypothesis.score == pytest.approx(4 * math.log(0.9), rel=1e-5)


def test_utterance_without_frames():
    batch = emissions([3, 0], 6)
    _, [empty] = Greedy(TOKENIZERS["characters"])(batch)
    assert (empty.text, empty.labels, empty.score, empty.words) == ("", (), 0.0, ())


def test_a_broken_model_is_told():
    """A frame without a number is an error, but not one of the padding."""
    batch = emissions([4, 6], 6)
    batch.log_probs[0, 4:] = np.nan
    greedy = Greedy(TOKENIZERS["characters"])
    assert len(greedy(batch)) == 2
    batch.log_probs[1, 3] = np.nan
    with pytest.raises(DataError, match="frame 3 has no finite log-probability"):
        greedy(batch)


def test_a_stream_has_as_many_frames_as_its_length():
    greedy, state = Greedy(TOKENIZERS["characters"]), GreedyState()
    batch = emissions([9], 6)
    batch = Emissions(batch.log_probs, np.array([5]), batch.frame_seconds)
    greedy.step(batch, state)
    assert greedy.finish(state) == greedy(batch)[0]
    with pytest.raises(DataError, match="a batch of 2"):
        greedy.step(emissions([4, 6], 6), greedy.start())
