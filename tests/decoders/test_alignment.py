from __future__ import annotations

import itertools
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
import torchaudio

from asr.decoders import Greedy
from asr.decoders.alignment import Alignment, align
from asr.decoders.greedy import collect_words
from asr.errors import DataError
from asr.tokenizers import Characters, Words
from asr.types import Emissions


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


def emissions(frames: int, labels: int, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    return log_softmax(scale * np.random.default_rng(seed).normal(size=(frames, labels)))


def path_of(alignment: Alignment, labels, frames: int) -> np.ndarray:
    path = np.zeros(frames, np.int64)
    for label, start, end in zip(labels, alignment.starts, alignment.ends, strict=True):
        path[start:end] = label
    return path


def forced_align(log_probs: np.ndarray, labels) -> tuple[np.ndarray, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the function will move
        targets = torch.tensor(np.asarray(labels))[None].int()
        path, scores = torchaudio.functional.forced_align(torch.from_numpy(log_probs).double()[None], targets)
    return path[0].numpy(), scores.sum().item()


def fewest_frames(labels) -> int:
    return len(labels) + sum(a == b for a, b in itertools.pairwise(labels))


def check_equal_to_forced_align(log_probs: np.ndarray, labels) -> None:
    found = align(log_probs, labels)
    path, score = forced_align(log_probs, labels)
    assert np.array_equal(path_of(found, labels, len(log_probs)), path)
    assert found.score == pytest.approx(score, abs=1e-6)
    for label, start, end, peak in zip(labels, found.starts, found.ends, found.log_posteriors, strict=True):
        assert peak == log_probs[start:end, label].max()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("spare", [0, 1, 25])
def test_equals_torchaudio(seed, spare):
    draw = np.random.default_rng(seed)
    size = int(draw.integers(2, 6))  # few labels, so that many are followed by an equal one
    labels = draw.integers(1, size, int(draw.integers(1, 25)))
    check_equal_to_forced_align(emissions(fewest_frames(labels) + spare, size, seed), labels)


def test_equals_torchaudio_across_checkpoints():
    labels = np.random.default_rng(1).integers(1, 5, 900)
    for frames in (1024, 1025, 1026, 2049, 5000):
        check_equal_to_forced_align(emissions(max(frames, fewest_frames(labels)), 5, frames), labels)


def test_no_path_is_likelier():
    log_probs = emissions(6, 3)
    for labels in ([], [1], [2, 1], [1, 1], [1, 2, 2]):

        def spells(path, labels=labels) -> bool:
            return [label for label, _ in itertools.groupby(path) if label] == labels

        best = max(sum(log_probs[range(6), path]) for path in itertools.product(range(3), repeat=6) if spells(path))
        assert align(log_probs, labels).score == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("tokenizer", [Characters(" abc"), Words(["yes", "no", "maybe"])], ids=["characters", "words"])
def test_what_greedy_hears_is_placed_where_greedy_hears_it(tokenizer):
    for seed in range(5):
        log_probs = emissions(80, len(tokenizer), seed)
        [[heard]] = Greedy(tokenizer)(Emissions(log_probs[None], np.array([80]), 0.04))
        labels = list(heard.labels)
        found = align(log_probs, labels)
        words = collect_words(labels, found.starts, found.ends, found.log_posteriors, tokenizer, 0.04)
        assert [(w.text, w.start, w.end) for w in words] == [(w.text, w.start, w.end) for w in heard.words]
        assert [w.confidence for w in words] == pytest.approx([w.confidence for w in heard.words])
        assert found.score == pytest.approx(heard.score, rel=1e-5)


def test_an_empty_transcript():
    log_probs = emissions(7, 4)
    found = align(log_probs, [])
    assert len(found.starts) == len(found.ends) == len(found.log_posteriors) == 0
    assert found.score == pytest.approx(log_probs[:, 0].sum(), rel=1e-6)
    assert align(np.zeros((0, 4), np.float32), []).score == 0


def test_too_few_frames():
    labels = [1, 1, 2, 2, 2, 3]
    assert align(emissions(9, 4), labels).starts.tolist() == [0, 2, 3, 5, 7, 8]
    with pytest.raises(DataError, match=r"6 labels need 9 frames \(a blank stands between 3 pairs .* there are 8"):
        align(emissions(8, 4), labels)
    with pytest.raises(DataError, match=r"1 labels need 1 frames .* there are 0"):
        align(np.zeros((0, 4), np.float32), [1])


def test_numbers_that_are_none():
    log_probs = emissions(9, 4)
    log_probs[3, 2] = np.nan
    with pytest.raises(DataError, match="NaN"):
        align(log_probs, [1])
    for labels in ([0], [4], [-1, 2]):
        with pytest.raises(DataError, match="Labels must be 1 to 3"):
            align(emissions(9, 4), labels)


def test_impossible_labels():
    log_probs = emissions(9, 4)
    log_probs[:, 3] = -np.inf
    assert align(log_probs, [1, 2]).score == pytest.approx(forced_align(log_probs, [1, 2])[1])
    with pytest.raises(DataError, match="the probability 0"):
        align(log_probs, [1, 3])


def planted(frames: int, count: int, labels: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Emissions that say a random path of a sequence of labels rather clearly; the labels, and where they begin."""
    draw = np.random.default_rng(0)
    starts = np.sort(draw.choice(frames // 2, count, replace=False)) * 2  # every other frame is blank
    ids = draw.integers(1, labels, count)
    logits = draw.normal(size=(frames, labels)).astype(np.float32)
    path = np.zeros(frames, np.int64)
    path[starts] = ids
    logits[np.arange(frames), path] += 12
    return log_softmax(logits), ids, starts


def check_memory(frames: int, count: int, megabytes: float) -> None:
    log_probs, ids, starts = planted(frames, count)
    align(log_probs[:50], [])  # compiled outside of the measurement
    tracemalloc.start()
    found = align(log_probs, ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found.starts, starts)
    assert peak < megabytes * 1e6


def test_memory_stays_small():
    check_memory(12_000, 6_000, 20)  # a table of all moves would take 144 MB


@pytest.mark.slow
def test_memory_of_an_hour():
    check_memory(90_000, 45_000, 100)  # a table of all moves would take 8 GB
