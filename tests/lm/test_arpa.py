"""ARPA files: round trips, what other tools write, and what is wrong with a broken one."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest

import asr.lm
from asr.errors import DataError
from asr.lm import KneserNey
from asr.lm.arpa import CHUNK, read_arpa, write_arpa
from tests.lm.test_kneser_ney import zipfian

ARPA = """
\\data\\
ngram 1=5
ngram 2=3
ngram 3=2

\\1-grams:
-2\t<unk>
-99\t<s>\t-0.25
-0.5\t</s>
-0.75\ta\t-0.5
-1 b -0.125

\\2-grams:
-0.25\t<s> a\t-1
-0.5\ta b\t0.25
-0.125\tb </s>

\\3-grams:
-0.0625\t<s> a b
-0.03125 a b </s>

\\end\\
"""


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA, "utf-8")
    return path


def test_the_arrays_of_a_file(arpa):
    model = read_arpa(arpa)
    assert model.vocabulary == ["<unk>", "<s>", "</s>", "a", "b"]
    assert (model.order, model.counts, model.unit) == (3, [5, 3, 2], "words")
    assert model.words.tolist() == [-1, 0, 1, 2, 3, 4, 3, 4, 2, 4, 2]
    assert model.first.tolist() == [1, 6, 6, 7, 7, 8, 9, 10, 11, 11]
    assert model.suffixes.tolist() == [0, 0, 0, 0, 0, 0, 4, 5, 3, 7, 8]
    ln10 = math.log(10)
    log10s = [0, -2, -99, -0.5, -0.75, -1, -0.25, -0.5, -0.125, -0.0625, -0.03125]
    assert np.array_equal(model.log_probs, np.float32(ln10 * np.array(log10s)))
    assert np.array_equal(model.backoffs, np.float32(ln10 * np.array([0, 0, -0.25, 0, -0.5, -0.125, -1, 0.25, 0])))
    assert model.score(["a", "b"]) == pytest.approx(ln10 * (-0.25 - 0.0625 - 0.03125))
    assert model.score(["b"]) == pytest.approx(ln10 * (-0.25 - 1 - 0.125))
    assert model.score(["c", "a"]) == pytest.approx(ln10 * (-0.25 - 2 - 0.75 - 0.5 - 0.5))


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("unit", ["words", "labels"])
def test_round_trip(order, name, unit, tmp_path):
    model = KneserNey(order, [0, 0, 1][:order]).fit(zipfian(4), unit)
    write_arpa(model, tmp_path / "new" / name)
    again = asr.lm.load(tmp_path / "new" / name)
    assert sorted(again.vocabulary) == sorted(model.vocabulary) and again.unit == unit
    for old, new in zip(model.arrays, again.arrays, strict=True):
        assert np.array_equal(old, new)
    write_arpa(again, tmp_path / "again.arpa")
    text = (tmp_path / "new" / name).read_bytes()
    assert (gzip.decompress(text) if name.endswith(".gz") else text) == (tmp_path / "again.arpa").read_bytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_files_longer_than_a_chunk(tmp_path):
    words = [f"w{k}" for k in range(CHUNK + 10)]
    model = KneserNey(2).fit([words, words[::-1]])
    write_arpa(model, tmp_path / "lm.arpa")
    for old, new in zip(model.arrays, read_arpa(tmp_path / "lm.arpa").arrays, strict=True):
        assert np.array_equal(old, new)
    lines = (tmp_path / "lm.arpa").read_text().splitlines()
    number = lines.index("\\2-grams:") + CHUNK + 3
    lines[number - 1] = "x" + lines[number - 1]
    (tmp_path / "lm.arpa").write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"lm\.arpa, line {number}: 'x.*' is not a number"):
        read_arpa(tmp_path / "lm.arpa")


def test_gzip_is_told_by_content(arpa, tmp_path):
    (tmp_path / "zipped.arpa").write_bytes(gzip.compress(ARPA.encode()))
    (tmp_path / "plain.gz").write_bytes(arpa.read_bytes())
    for name in ("zipped.arpa", "plain.gz"):
        assert np.array_equal(read_arpa(tmp_path / name).words, read_arpa(arpa).words)


def test_words_are_compared_as_they_are_written(arpa):
    arpa.write_text(ARPA.replace("b", "Ä\u00a0ß"), "utf-8")
    assert read_arpa(arpa).vocabulary[3:] == ["a", "Ä\u00a0ß"]


def test_labels_are_told_from_words(arpa):
    arpa.write_text(ARPA.replace("b", "<space>"))
    assert read_arpa(arpa).unit == "labels"
    arpa.write_text("# unit: labels" + ARPA)
    assert read_arpa(arpa).unit == "labels"
    arpa.write_text("# unit: words" + ARPA)
    assert read_arpa(arpa).unit == "words"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n\\data\\", "#######\nThis file is in the ARPA-standard format introduced by Doug Paul.\n\n\\data\\"),
        ("ngram 1=5", "ngram  1=     5"),
        ("\t", " "),
        ("\n", "\r\n"),
        ("-0.125\tb </s>", "-0.125\tb </s>\t0"),
        ("\n\n", "\n\n\n \n"),
        ("<s> a b", "<s> a b\t0"),
        ("-0.5\t</s>\n-0.75\ta\t-0.5\n", "-0.75\ta\t-0.5\n-0.5\t</s>\n"),
    ],
    ids=["preamble", "spaces", "no tabs", "windows", "some back-offs", "blank lines", "last back-off", "order"],
)
def test_what_other_tools_write(old, new, arpa):
    expected = read_arpa(arpa)
    assert old in ARPA
    arpa.write_bytes(ARPA.replace(old, new).encode())
    found = read_arpa(arpa)
    for left, right in zip(expected.arrays, found.arrays, strict=True):
        assert np.array_equal(left, right)


def test_special_words_that_are_missing(arpa):
    arpa.write_text("\\data\\\nngram 1=1\n\n\\1-grams:\n-1 a\n\n\\end\\\n")
    model = read_arpa(arpa)
    assert model.vocabulary == ["<unk>", "<s>", "</s>", "a"] and model.order == 1
    assert model.log_probs / math.log(10) == pytest.approx([0, -100, -100, -100, -1])


def test_unknown_words_in_capitals(arpa):
    """As KenLM takes them; where both are there, the capitals are a word."""
    lower = ARPA.replace("a b", "a <unk>").replace("\tb </s>", "\t<unk> </s>").replace("-2\t<unk>", "-2\t<unk>\t-1")
    arpa.write_text(lower)
    expected = read_arpa(arpa)
    arpa.write_text(lower.replace("<unk>", "<UNK>"))
    found = read_arpa(arpa)
    assert found.vocabulary == expected.vocabulary
    for left, right in zip(expected.arrays, found.arrays, strict=True):
        assert np.array_equal(left, right)
    arpa.write_text(ARPA.replace("\tb\t", "\t<UNK>\t").replace(" b", " <UNK>").replace("\tb", "\t<UNK>"))
    assert read_arpa(arpa).vocabulary == ["<unk>", "<s>", "</s>", "a", "<UNK>"]


def test_impossible_words(arpa):
    arpa.write_text(ARPA.replace("-2\t<unk>", "-inf\t<unk>").replace("\ta\t-0.5", "\ta\t-inf"))
    model = read_arpa(arpa)
    assert model.log_probs[1] == model.backoffs[4] == np.float32(-100 * math.log(10))


def test_an_order_without_ngrams(arpa):
    arpa.write_text(ARPA.replace("3=2", "3=0").replace("-0.0625\t<s> a b\n-0.03125 a b </s>\n", ""))
    model = read_arpa(arpa)
    assert model.counts == [5, 3, 0] and len(model.backoffs) == 9
    assert model.score(["a", "b"]) == pytest.approx(math.log(10) * (-0.25 - 1 - 0.5 + 0.25 - 0.125))


BROKEN = [
    ("\\data\\", "\\dta\\", r"lm\.arpa: no ARPA file: has no line \\data\\ at its beginning"),
    ("ngram 2=3", "ngram 2=x", r"line 4: 'ngram 2=COUNT' is expected, found 'ngram 2=x'"),
    ("ngram 2=3\n", "", r"line 4: 'ngram 2=COUNT' is expected, found 'ngram 3=2'"),
    ("ngram 1=5\nngram 2=3\nngram 3=2\n", "", "line 4: the header gives no number of unigrams"),
    ("ngram 2=3", "ngram 2=3000000000", r"3,000,000,007 n-grams are more than a model can hold"),
    ("\\1-grams:", "\\2-grams:", r"line 7: '\\1-grams:' is expected, found '\\2-grams:'"),
    ("ngram 1=5", "ngram 1=6", r"line 13: the section of 1-grams ends after 5 lines, but the header says 6"),
    (
        "ngram 1=5",
        "ngram 1=4",
        r"line 12: '\\2-grams:' is expected, found '-1 b -0.125': the section before it has more",
    ),
    ("ngram 3=2", "ngram 3=3", r"line 22: the section of 3-grams ends after 2 lines, but the header says 3"),
    ("ngram 3=2", "ngram 3=1", r"line 21: '\\end\\' is expected, found '-0.03125 a b </s>': the last section has more"),
    ("-0.5\ta b\t0.25\n", "", r"line 17: the section of 2-grams ends after 2 lines, but the header says 3"),
    ("\\3-grams:", "\\4-grams:", r"line 19: '\\3-grams:' is expected, found '\\4-grams:'"),
    ("-0.5\ta b\t0.25", "-0.5\ta\t0.25", r"line 16: the word '0.25' is none of the unigrams"),
    ("-0.5\ta b\t0.25", "-0.5", r"line 16: a number, 2 words and at most one more number are expected, found '-0.5'"),
    ("-0.5\ta b\t0.25", "-0.5\ta b c d e", r"line 16: a number, 2 words and at most one more number are expected"),
    ("-0.5\ta b\t0.25", "-0.5\ta c\t0.25", r"line 16: the word 'c' is none of the unigrams"),
    ("-0.5\ta b\t0.25", "-O.5\ta b\t0.25", r"line 16: '-O.5' is not a number"),
    ("-0.5\ta b\t0.25", "-0.5\ta b\tx", r"line 16: 'x' is not a number"),
    ("-0.5\ta b\t0.25", "nan\ta b\t0.25", r"line 16: 'nan' is not a number"),
    ("-0.5\ta b\t0.25", "-0.5\ta b\tinf", r"line 16: 'inf' is not a number"),
    ("-0.5\ta b\t0.25", "0.5\ta b\t0.25", r"line 16: the log10 probability 0.5 is above 0"),
    ("-0.5\ta b\t0.25", "-0.25\t<s> a\t-1", r"line 16: this 2-gram comes twice"),
    ("-1 b -0.125", "-1\ta\t-0.125", r"line 12: the word 'a' comes twice"),
    ("a b </s>", "b a </s>", r"line 21: the first 2 words of this 3-gram are no 2-gram of the file"),
    ("\n\\end\\", "", r"lm\.arpa: was cut short: it ends after line 22, without \\end\\"),
    ("-0.03125 a b </s>\n\n\\end\\\n", "", r"was cut short: it ends after line 20"),
    ("\\3-grams:\n-0.0625\t<s> a b\n-0.03125 a b </s>\n\n\\end\\\n", "", r"was cut short: it ends after line 18"),
    ("a b </s>", "a b \udcff", "line 21: the word '�' is none of the unigrams"),
]


@pytest.mark.parametrize(("old", "new", "says"), BROKEN)
def test_what_is_wrong_is_said(old, new, says, arpa):
    assert old in ARPA
    arpa.write_bytes(ARPA.replace(old, new, 1).encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=says) as raised:
        read_arpa(arpa)
    assert str(raised.value).startswith(str(arpa))


def test_words_that_are_not_utf8(arpa):
    arpa.write_bytes(ARPA.encode().replace(b"b", b"\xff"))
    with pytest.raises(DataError, match=r"the word b'\\xff' is not UTF-8. Convert the file to UTF-8"):
        read_arpa(arpa)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "x"
    for content in (b"", b"hello\n" * 100_000, b"\0" * 1_000_000):
        path.write_bytes(content)
        with pytest.raises(DataError, match="no ARPA file"):
            read_arpa(path)
    path.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0")
    with pytest.raises(DataError, match=r"a KenLM binary\. Give the ARPA file that it was made from"):
        read_arpa(path)
    whole = gzip.compress(ARPA.encode())
    for content in (whole[:60], whole[:-8] + b"\0" * 8, whole[:30] + b"\0\0" + whole[32:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="its gzip compression is damaged or cut short"):
            read_arpa(path)


def test_places_that_cannot_be_written(arpa):
    with pytest.raises(DataError, match="cannot be written"):
        write_arpa(read_arpa(arpa), arpa / "lm.arpa")
    with pytest.raises(DataError, match=r"cannot be read|Is a directory"):
        read_arpa(arpa.parent)
