from __future__ import annotations

import itertools
import json
import re

import pytest

from asr.errors import ConfigError
from asr.types import AlignedTranscript, Transcript, Utterance, Word
from asr.writers import to_aligned_json, to_ctm, to_json, to_text, to_textgrid, writer

WORDS = (Word("语音", 0.04, 0.2, 0.98765), Word('"go"', 0.2, 0.48, 0.5), Word("it's", 0.8, 1.001, 1.0))
LABELS = (Word("a", 0.04, 0.08, 0.9), Word("b", 0.16, 0.2, 0.8))
TRANSCRIPT = AlignedTranscript("talks/a b.wav", "语音 go it's", WORDS, 1.2346, (), LABELS, -0.12345, "语音 go")


def tiers(textgrid: str) -> dict[str, list[tuple[float, float, str]]]:
    """The intervals of each tier, read by what Praat's manual says of the long format."""
    header, *items = re.split(r" +item \[\d+\]:\n", textgrid)
    assert header.startswith('File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = ')
    assert f"tiers? <exists>\nsize = {len(items)}\nitem []:\n" in header
    found = {}
    for item in items:
        name = re.search(r'class = "IntervalTier"\n +name = "(\w+)"', item)[1]
        rows = re.findall(r'intervals \[\d+\]:\n +xmin = (\S+)\n +xmax = (\S+)\n +text = "(.*)"(?:\n|$)', item)
        assert len(rows) == int(re.search(r"intervals: size = (\d+)", item)[1])
        found[name] = [(float(start), float(end), text.replace('""', '"')) for start, end, text in rows]
    return found


def test_text_and_json():
    transcript = Transcript("a.wav", "it's", WORDS[2:], 1.23456)
    assert to_text(transcript) == "a.wav\tit's"
    assert json.loads(to_json(transcript)) == {
        "audio_filepath": "a.wav",
        "duration": 1.235,
        "text": "it's",
        "words": [{"text": "it's", "start": 0.8, "end": 1.001, "confidence": 1.0}],
    }
    assert writer("json") is to_json
    with pytest.raises(ConfigError, match=r"format=jsn: no such format\. Did you mean json\?"):
        writer("jsn")


def test_json_of_an_alignment():
    row = json.loads(to_aligned_json(TRANSCRIPT, Utterance("talks/a b.wav", offset=10.0, id="u1")))
    assert (row["id"], row["offset"], row["score"], row["text"]) == ("u1", 10.0, -0.1235, "语音 go it's")
    assert [word["text"] for word in row["words"]] == ["语音", '"go"', "it's"]
    assert row["labels"][1] == {"text": "b", "start": 0.16, "end": 0.2, "confidence": 0.8}


def test_ctm():
    lines = to_ctm(TRANSCRIPT, "a_b", channel=1, offset=60.5).split("\n")
    assert lines[0] == "a_b 2 60.540 0.160 语音 0.9877"
    assert [len(line.split()) for line in lines] == [6, 6, 6]
    assert to_ctm(TRANSCRIPT, "a_b").startswith("a_b 1 0.040 ")
    assert to_ctm(Transcript("a.wav", "", (), 1.0), "a") == ""


def test_textgrid():
    found = tiers(to_textgrid(TRANSCRIPT))
    assert list(found) == ["words", "labels"]
    for name, words in (("words", WORDS), ("labels", LABELS)):
        intervals = found[name]
        assert [(start, end, text) for start, end, text in intervals if text] == [
            (w.start, w.end, w.text) for w in words
        ]
        assert intervals[0][0] == 0 and intervals[-1][1] == 1.235
        assert all(before[1] == after[0] for before, after in itertools.pairwise(intervals))
        assert all(start < end for start, end, _ in intervals)


def test_textgrid_without_words():
    found = tiers(to_textgrid(AlignedTranscript("a.wav", "", (), 2.0)))
    assert found == {"words": [(0.0, 2.0, "")], "labels": [(0.0, 2.0, "")]}
