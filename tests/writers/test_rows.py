from __future__ import annotations

import json

import pytest

from asr.errors import ConfigError
from asr.types import AlignedTranscript, Hypothesis, Segment, Transcript, Utterance, Word
from asr.writers import (
    FORMATS,
    check_formats,
    format_transcript,
    to_aligned_json,
    to_ctm,
    to_json,
    to_lines,
    to_text,
    to_tsv,
)

WORDS = (Word("语音", 0.04, 0.2, 0.98765), Word('"go"', 0.2, 0.48, 0.5), Word("it's", 0.8, 1.001, 1.0))
LABELS = (Word("a", 0.04, 0.08, 0.9), Word("b", 0.16, 0.2, 0.8))
ALIGNED = AlignedTranscript("talks/a b.wav", "语音 go it's", WORDS, 1.2346, (), LABELS, -0.12345, "语音 go")
NBEST = (Hypothesis("it's", (1,), -1.23456, WORDS[2:], -1.0, -0.23456), Hypothesis("its", (2,), -2.0, ()))
SEGMENTS = (Segment('语音 "go"', 0.04, 0.48, WORDS[:2]), Segment("it's", 0.8, 1.001, WORDS[2:], NBEST))
TRANSCRIPT = Transcript("talks/a b.wav", '语音 "go" it\'s', WORDS, 1.23456, segments=SEGMENTS)


def test_text():
    assert to_text(TRANSCRIPT) == 'talks/a b.wav\t语音 "go" it\'s'
    assert to_lines(TRANSCRIPT) == '语音 "go"\nit\'s'


def test_json():
    row = json.loads(to_json(TRANSCRIPT))
    assert "\n" not in to_json(TRANSCRIPT)
    assert row == {
        "audio_filepath": "talks/a b.wav",
        "duration": 1.235,
        "text": '语音 "go" it\'s',
        "words": [
            {"text": "语音", "start": 0.04, "end": 0.2, "confidence": 0.9877},
            {"text": '"go"', "start": 0.2, "end": 0.48, "confidence": 0.5},
            {"text": "it's", "start": 0.8, "end": 1.001, "confidence": 1.0},
        ],
        "segments": [
            {"text": '语音 "go"', "start": 0.04, "end": 0.48},
            {
                "text": "it's",
                "start": 0.8,
                "end": 1.001,
                "nbest": [
                    {"text": "it's", "score": -1.2346, "acoustic_score": -1.0, "lm_score": -0.2346},
                    {"text": "its", "score": -2.0},
                ],
            },
        ],
    }


def test_json_of_an_alignment():
    row = json.loads(to_aligned_json(ALIGNED, Utterance("talks/a b.wav", offset=10.0, id="u1")))
    assert (row["id"], row["offset"], row["score"], row["text"]) == ("u1", 10.0, -0.1235, "语音 go it's")
    assert [word["text"] for word in row["words"]] == ["语音", '"go"', "it's"]
    assert row["labels"][1] == {"text": "b", "start": 0.16, "end": 0.2, "confidence": 0.8}


def test_ctm():
    lines = to_ctm(ALIGNED, "a_b", channel=1, offset=60.5).split("\n")
    assert lines[0] == "a_b 2 60.540 0.160 语音 0.9877"
    assert [len(line.split()) for line in lines] == [6, 6, 6]
    assert to_ctm(ALIGNED, "a_b").startswith("a_b 1 0.040 ")
    assert to_ctm(Transcript("a.wav", "", (), 1.0), "a") == ""


def test_tsv():
    assert to_tsv(TRANSCRIPT) == 'start\tend\ttext\n40\t480\t语音 "go"\n800\t1001\tit\'s'


def test_formats():
    assert set(FORMATS) == {"txt", "json", "srt", "vtt", "ctm", "textgrid", "tsv"}
    assert format_transcript("ctm", TRANSCRIPT, "a_b", 1) == to_ctm(TRANSCRIPT, "a_b", 1)
    for form in FORMATS:  # nothing was said
        assert isinstance(format_transcript(form, Transcript("a.wav", "", (), 1.0), "a"), str)
    with pytest.raises(ConfigError, match=r"format=jsn: no such format\. Did you mean json\?"):
        check_formats(["txt", "jsn"])
    with pytest.raises(ConfigError, match="format: which one"):
        check_formats([])
