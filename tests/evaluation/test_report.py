import io
import json
import os
from dataclasses import replace

import pytest
from rich.console import Console

from asr.errors import ConfigError, DataError
from asr.evaluation import make_results, print_evaluation, read_results, summarize, write_results
from asr.evaluation.alignment import align, format_errors
from asr.types import Utterance

SPOKEN = [
    ("one two three", "one two three", "s10", {"age": 9}),
    ("four five", "for five", "s9", {"age": 31}),
    ("six", "", "s9", {"age": 31}),
    ("今天天气", "今天汽", "李[b]", {}),
    ("seven", "seven up", None, {"age": "old"}),
]


@pytest.fixture
def results():
    utterances = [
        Utterance(
            f"{n}.wav", text, duration=2.0, id=f"u{n}", speaker=speaker, lang="zh" if n == 3 else None, extra=extra
        )
        for n, (text, _, speaker, extra) in enumerate(SPOKEN)
    ]
    return make_results(utterances, [hypothesis for _, hypothesis, _, _ in SPOKEN])


def printed(evaluation, width=80):
    console = Console(file=io.StringIO(), width=width)
    print_evaluation(evaluation, console)
    return console.file.getvalue()


def test_lines(results):
    evaluation = summarize(results, seconds=1.0)
    wer, cer, uer, rtf = printed(evaluation).splitlines()
    assert wer.startswith("WER 50.00 % [4 / 8, 1 ins, 1 del, 2 sub], 95 % interval ")
    assert wer.endswith(" over 4 speakers and utterances without one")
    assert cer.startswith("CER 26.47 % [9 / 34, 3 ins, 5 del, 1 sub], 95 %")
    assert uer == "UER 80.0 % [4 / 5]"
    assert rtf == "RTF 0.1000 [1.0 s for 10.0 s of audio]"
    assert "RTF" not in printed(summarize(results))


def test_groups(results):
    evaluation = summarize(results, group_by=["speaker", "age"])
    assert list(evaluation.groups["speaker"]) == ["s10", "s9", "李[b]", "(none)"]
    assert list(evaluation.groups["age"]) == ["9", "31", "old", "(none)"]
    assert evaluation.groups["age"]["31"].words.format("WER") == "WER 66.67 % [2 / 3, 0 ins, 1 del, 1 sub]"
    for groups in evaluation.groups.values():
        assert sum(scores.utterances for scores in groups.values()) == 5
    text = printed(evaluation)
    assert "by speaker" in text and "李[b]" in text and "2 / 3" in text
    assert text.splitlines()[-1].startswith("UER")


def test_a_group_that_is_too_large_a_number(results):
    results[0] = replace(results[0], fields={"age": 10**400})
    assert str(10**400) in summarize(results, group_by=["age"]).groups["age"]


def test_groups_on_two_sides_of_a_number(results):
    groups = summarize(results, group_by=["age<31"]).groups["age<31"]
    apart = summarize(results, group_by=["age"]).groups["age"]
    assert {name: scores.words for name, scores in groups.items()} == {
        "< 31": apart["9"].words,
        "≥ 31": apart["31"].words,
        "(none)": apart["old"].words + apart["(none)"].words,
    }
    with pytest.raises(ConfigError, match="group_by=age<old: 'old' is not a number"):
        summarize(results, group_by=["age<old"])


def test_unknown_group(results):
    with pytest.raises(ConfigError, match=r"group_by=agee: no utterance has a value for it\. Did you mean age"):
        summarize(results, group_by=["agee"])
    with pytest.raises(ConfigError, match="There are none"):
        summarize([replace(r, fields={}, speaker=None) for r in results], group_by="speaker")
    with pytest.raises(DataError, match="no utterances"):
        summarize([])


def test_compare(results):
    better = make_results([Utterance("", r.reference, id=r.id) for r in results], [r.reference for r in results])
    evaluation = summarize(results, compare=better, compare_name="runs/base")
    assert "WER 50.00 % against 0.00 % of runs/base: +50.00 points, 95 % interval" in printed(evaluation)
    assert evaluation.as_dict()["compare"]["wer"]["difference"] == 0.5
    with pytest.raises(DataError, match="not of the same utterances"):
        summarize(results, compare=better[1:])


def test_no_text():
    with pytest.raises(DataError, match="u7: the utterance has no 'text'"):
        make_results([Utterance("a.wav", id="u7")], ["a"])


def test_round_trip(results, tmp_path):
    evaluation = summarize(results, group_by=["age"], seconds=1.0)
    folder = tmp_path / "结果" / "new"
    write_results(folder, results, evaluation.as_dict() | {"command": "evaluate …"})
    assert read_results(folder) == read_results(folder / "results.jsonl") == results
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert summary["wer"]["errors"] == 4 and summary["wer"]["interval"]["clusters"] == 4
    assert (summary["uer"], summary["rtf"], summary["command"]) == (0.8, 0.1, "evaluate …")
    assert summary["groups"]["age"]["31"]["utterances"] == 2
    assert sorted(path.name for path in folder.iterdir()) == ["errors.txt", "results.jsonl", "summary.json"]


def test_undefined_rates_are_null(tmp_path):
    results = make_results([Utterance("", "", id="silence")], ["oh"])
    write_results(tmp_path, results, summarize(results).as_dict())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["wer"]["rate"] is None and summary["wer"]["interval"]["low"] is None


def test_nothing_is_overwritten(results, tmp_path):
    write_results(tmp_path, results, {})
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(DataError, match=r"holds results already.*out=DIR.*overwrite=true"):
        write_results(tmp_path, results[:1], {})
    assert (tmp_path / "results.jsonl").read_bytes() == before
    write_results(tmp_path, results[:1], {}, overwrite=True)
    assert read_results(tmp_path) == results[:1]


def test_folder_that_cannot_be_written(results, tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(DataError, match="out=DIR"):
        write_results(file / "x", results, {})
    if os.getuid():
        tmp_path.chmod(0o500)
        with pytest.raises(DataError, match="no permission"):
            write_results(tmp_path, results, {})


@pytest.mark.parametrize("line", ["{", "[]", '{"id": "u"}', '{"words": {}, "characters": {}, "other": 1}', "\xff"])
def test_broken_results(line, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"\n" + line.encode("latin-1"))
    with pytest.raises(DataError, match=r"results\.jsonl, line 2: not a result"):
        read_results(path)
    path.write_text("")
    with pytest.raises(DataError, match="holds no results"):
        read_results(path)
    with pytest.raises(DataError, match="no such file"):
        read_results(tmp_path / "absent")


def test_align():
    assert align(["a b c", "", "今天 ok"], ["a x c d", "b", "今 ok"]) == [
        [("a", "a"), ("b", "x"), ("c", "c"), (None, "d")],
        [(None, "b")],
        [("今", "今"), ("天", None), ("ok", "ok")],
    ]
    assert align([], []) == []


def test_errors_text(results):
    text = format_errors(results)
    assert text.startswith("4 of 5 utterances are wrong.\n")
    assert "      1  four → for\n" in text and "      1  six\n" in text and "      1  up\n" in text
    assert "REF: seven **\nHYP: seven up\n           I\n" in text
    assert "REF: 今 天 天 气\n" in text
    assert "u0" not in text
    assert text.index("u4:") < text.index("u1,")  # three wrong characters before one


def test_errors_text_wraps():
    results = make_results([Utterance("", "word " * 50, id="u")], ["word " * 49])
    lines = format_errors(results, width=60).splitlines()
    assert sum(line.startswith("REF:") for line in lines) == 5
    assert max(len(line) for line in lines if line.startswith(("REF", "HYP"))) <= 60
