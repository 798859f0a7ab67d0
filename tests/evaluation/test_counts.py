import random

import jiwer
import pytest

from asr.evaluation.counts import ErrorCounts, count_characters, count_characters_each, count_words, count_words_each

CASES = [
    ("", "", (0, 0, 0, 0)),
    ("", "a b", (0, 0, 2, 0)),
    ("a b", "", (0, 2, 0, 2)),
    ("one two three", "one two three", (0, 0, 0, 3)),
    ("one two three", "one too three", (1, 0, 0, 3)),
    ("one two three", "one three", (0, 1, 0, 3)),
    ("one three", "one two three", (0, 0, 1, 2)),
    ("one  two ", " one two", (0, 0, 0, 2)),
    ("今天 天气", "今天 天汽", (1, 0, 0, 2)),
    ("One", "one", (1, 0, 0, 1)),
]


def distance(a, b):
    """Levenshtein's distance by the textbook."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, last = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
    return row[-1]


def random_texts(seed, count=300):
    generator = random.Random(seed)
    words = ["one", "two", "three", "oh", "é", "今天", "天"]
    return [" ".join(generator.choices(words, k=generator.randrange(9))) for _ in range(count)]


@pytest.mark.parametrize(("reference", "hypothesis", "expected"), CASES)
def test_words_by_hand(reference, hypothesis, expected):
    assert count_words(reference, hypothesis) == ErrorCounts(*expected)


def test_characters_by_hand():
    assert count_characters("今天天气", "今天气汽") == ErrorCounts(2, 0, 0, 4)
    assert count_characters("a b", "ab") == ErrorCounts(0, 1, 0, 3)  # the space counts
    assert count_characters(" ab ", "ab") == ErrorCounts(0, 0, 0, 2)
    assert count_characters("", "ab") == ErrorCounts(0, 0, 2, 0)


@pytest.mark.parametrize(
    ("each", "total", "process", "split"),
    [
        (count_words_each, count_words, jiwer.process_words, str.split),
        (count_characters_each, count_characters, jiwer.process_characters, list),
    ],
)
def test_equal_to_jiwer_and_to_levenshtein(each, total, process, split):
    references, hypotheses = random_texts(1), random_texts(2)
    counts = each(references, hypotheses)
    for reference, hypothesis, count in zip(references, hypotheses, counts, strict=True):
        theirs = process(reference, hypothesis)
        assert count == ErrorCounts(theirs.substitutions, theirs.deletions, theirs.insertions, len(split(reference)))
        assert count.errors == distance(split(reference), split(hypothesis))
        assert count.reference - count.deletions + count.insertions == len(split(hypothesis))
    theirs = process(references, hypotheses)
    assert total(references, hypotheses) == sum(counts, ErrorCounts())
    assert total(references, hypotheses).rate == pytest.approx(getattr(theirs, "wer", None) or theirs.cer)


def test_rate_of_the_sum_is_not_the_mean_of_rates():
    short, long = count_words("no", "yes"), count_words("a b c d e f g h i", "a b c d e f g h i")
    assert (short + long).rate == pytest.approx(0.1)
    assert (short.rate + long.rate) / 2 == pytest.approx(0.5)


def test_format():
    assert ErrorCounts(60, 9, 5, 773).format("WER") == "WER 9.57 % [74 / 773, 5 ins, 9 del, 60 sub]"
    assert ErrorCounts(0, 0, 2, 0).format("CER") == "CER undefined [2 / 0, 2 ins, 0 del, 0 sub]"


def test_nothing_to_count():
    assert count_words([], []) == ErrorCounts() and count_words_each([], []) == []
    assert ErrorCounts().rate != ErrorCounts().rate
    with pytest.raises(ValueError, match="1 references, 2 hypotheses"):
        count_words(["a"], ["a", "b"])
