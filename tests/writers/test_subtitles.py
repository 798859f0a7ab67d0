"""Subtitles and TextGrids, read by packages that have nothing to do with ours."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

import pysubs2
import pytest
from praatio import textgrid

from asr.types import AlignedTranscript, Segment, Transcript, Word
from asr.writers import format_transcript, to_srt, to_textgrid, to_vtt
from asr.writers.subtitles import cues


def transcript_of(segments: list[list[Word]], glue: str = " ") -> Transcript:
    made = tuple(Segment(glue.join(w.text for w in ws), ws[0].start, ws[-1].end, tuple(ws)) for ws in segments)
    words = tuple(word for segment in made for word in segment.words)
    return Transcript("a.wav", glue.join(s.text for s in made), words, made[-1].end + 0.5, segments=made)


def talk(seed: int, words: int = 400, letters: str = "abcdefghijklmnop") -> Transcript:
    """Words of 1 to 12 letters with pauses of all lengths, in frames of 40 ms."""
    draw = random.Random(seed)
    segments: list[list[Word]] = [[]]
    at = draw.randrange(50)
    for _ in range(words):
        text = "".join(draw.choices(letters, k=draw.randint(1, 12)))
        frames = draw.randint(1, 3 * len(text))
        segments[-1].append(Word(text, round(0.04 * at, 3), round(0.04 * (at + frames), 3), 0.9))
        pause = draw.choice([0, 0, 0, 1, 3, 5, 10, 20, 40, 100])
        at += frames + pause
        if pause > 12:
            segments.append([])
    return transcript_of([segment for segment in segments if segment])


@pytest.mark.parametrize("form", ["srt", "vtt"])
@pytest.mark.parametrize("seed", range(5))
def test_subtitles_hold_what_they_promise(tmp_path: Path, form: str, seed: int) -> None:
    transcript = talk(seed)
    path = tmp_path / f"a.{form}"
    path.write_text(format_transcript(form, transcript, "a"), "utf-8")
    found = pysubs2.load(str(path))
    lines = [event.plaintext.split("\n") for event in found]
    assert " ".join(line for event in lines for line in event) == transcript.text
    assert all(len(event) <= 2 and all(len(line) <= 42 for line in event) for event in lines)
    starts = {round(1000 * word.start) for word in transcript.words}
    for event, after in itertools.pairwise([*found, None]):
        assert event.start in starts
        assert event.start < event.end <= event.start + 7000
        assert after is None or event.end <= after.start
        assert event.duration >= 1000 or (after is not None and event.end == after.start)
    # no cue lasts over a pause
    for word, after in itertools.pairwise(transcript.words):
        if after.start - word.end >= 1:
            assert round(1000 * after.start) in {event.start for event in found}


def test_a_cue_ends_where_the_speaker_pauses() -> None:
    words = [Word(f"word{k:04}", 0.4 * k, 0.4 * k + (0.1 if k == 6 else 0.4), 1.0) for k in range(12)]
    assert [cue.lines for cue in cues(transcript_of([words]))] == [  # eight would fit
        ("word0000 word0001 word0002 word0003", "word0004 word0005 word0006"),
        ("word0007 word0008 word0009", "word0010 word0011"),
    ]


def test_a_cue_stays_as_long_as_it_takes_to_read_it() -> None:
    words = [
        Word("a" * 40, 1.0, 1.2, 1.0),
        Word("b", 1.2, 1.4, 1.0),
        Word("c", 9.0, 9.1, 1.0),
        Word("d", 10.4, 10.5, 1.0),
    ]
    first, second, third = cues(transcript_of([words]))
    assert (first.start, first.end) == (1.0, pytest.approx(1.0 + 42 / 20))
    assert (second.start, second.end) == (9.0, 10.0)
    assert (third.start, third.end) == (10.4, 11.4)


def test_languages_without_spaces() -> None:
    words = [Word(letter, 0.2 * k, 0.2 * k + 0.2, 1.0) for k, letter in enumerate("语音识别系统" * 20)]
    transcript = transcript_of([words], glue="")
    found = cues(transcript)
    assert "".join(line for cue in found for line in cue.lines) == transcript.text
    assert all(len(line) <= 21 for cue in found for line in cue.lines)  # each takes two columns


def test_words_longer_than_a_line() -> None:
    found = cues(transcript_of([[Word("x" * 150, 1.0, 4.0, 1.0), Word("end", 4.0, 4.2, 1.0)]]))
    assert "".join(line for cue in found for line in cue.lines).replace(" ", "") == "x" * 150 + "end"
    assert all(len(line) <= 42 for cue in found for line in cue.lines)


def test_segments_without_words() -> None:
    segment = Segment("nobody knows where these words are " * 5, 10.0, 30.0)
    found = cues(Transcript("a.wav", segment.text, (), 30.0, segments=(segment,)))
    assert " ".join(" ".join(cue.lines) for cue in found) == segment.text.strip()
    assert found[0].start == 10.0 and found[-1].end <= 31.0


def test_markup_is_text(tmp_path: Path) -> None:
    transcript = transcript_of([[Word("<b>", 0.0, 0.5, 1.0), Word("R&D", 0.5, 1.0, 1.0)]])
    assert to_vtt(transcript) == "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n&lt;b&gt; R&amp;D"
    assert to_srt(transcript) == "1\n00:00:00,000 --> 00:00:01,000\n<b> R&D"


def test_hours() -> None:
    transcript = transcript_of([[Word("late", 36000.0, 36001.5, 1.0)]])
    assert to_srt(transcript) == "1\n10:00:00,000 --> 10:00:01,500\nlate"


# --- TextGrids


def tiers(text: str, folder: Path) -> dict[str, list[tuple[float, float, str]]]:
    (folder / "a.TextGrid").write_text(text, "utf-8")
    grid = textgrid.openTextgrid(str(folder / "a.TextGrid"), includeEmptyIntervals=True, reportingMode="error")
    grid.validate("error")
    return {name: [tuple(entry) for entry in grid.getTier(name).entries] for name in grid.tierNames}


def check_tier(intervals: list[tuple[float, float, str]], places: tuple, end: float) -> None:
    assert [interval for interval in intervals if interval[2]] == [(p.start, p.end, p.text) for p in places]
    assert intervals[0][0] == 0 and intervals[-1][1] == end
    assert all(before[1] == after[0] for before, after in itertools.pairwise(intervals))
    assert all(start < stop for start, stop, _ in intervals)


def test_textgrid_of_a_transcript(tmp_path: Path) -> None:
    transcript = talk(0)
    found = tiers(to_textgrid(transcript), tmp_path)
    assert list(found) == ["words", "segments"]
    check_tier(found["words"], transcript.words, round(transcript.duration, 3))
    check_tier(found["segments"], transcript.segments, round(transcript.duration, 3))


def test_textgrid_of_an_alignment(tmp_path: Path) -> None:
    words = (Word("语音", 0.04, 0.2, 0.98765), Word('"go"', 0.2, 0.48, 0.5), Word("it's", 0.8, 1.001, 1.0))
    labels = (Word("a", 0.04, 0.08, 0.9), Word("b", 0.16, 0.2, 0.8))
    found = tiers(to_textgrid(AlignedTranscript("a.wav", "", words, 1.2346, (), labels)), tmp_path)
    assert list(found) == ["words", "labels"]
    check_tier(found["words"], words, 1.235)
    check_tier(found["labels"], labels, 1.235)


def test_textgrid_without_words(tmp_path: Path) -> None:
    assert tiers(to_textgrid(AlignedTranscript("a.wav", "", (), 2.0)), tmp_path) == {
        "words": [(0.0, 2.0, "")],
        "labels": [(0.0, 2.0, "")],
    }


def test_the_last_frame_may_reach_beyond_the_audio(tmp_path: Path) -> None:
    found = tiers(to_textgrid(AlignedTranscript("a.wav", "", (Word("end", 0.96, 1.04, 1.0),), 1.01)), tmp_path)
    assert found["words"] == [(0.0, 0.96, ""), (0.96, 1.01, "end")]


def test_vtt_has_no_blank_line_in_a_cue() -> None:
    blocks = to_vtt(talk(1)).split("\n\n")
    assert blocks[0] == "WEBVTT"
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d{3} --> \d\d:\d\d:\d\d\.\d{3}\n\S", block) for block in blocks[1:])
