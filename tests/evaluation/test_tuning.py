from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import asr
from asr.bundle import install_decoder, pipeline_config, save_bundle
from asr.cli import run
from asr.decoders import Beam
from asr.errors import CheckpointError, ConfigError
from asr.evaluation import decode, tuning
from asr.evaluation.counts import count_words
from asr.types import Emissions
from tests.test_recognizer import CONFIG, pipeline

ARPA = """\\data\\
ngram 1=5

\\1-grams:
-1.0\t<unk>
-99\t<s>
-0.5\t</s>
-0.4\ta
-0.6\tbad

\\end\\
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "run" / "bundle", pipeline(), pipeline_config(CONFIG), "card")
    (tmp_path / "words.arpa").write_text(ARPA)
    return tmp_path / "run"


@pytest.fixture
def refused(clean, capsys):
    def call(command: str, *arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            run(command, [*arguments])
        assert stopped.value.code == 1
        return capsys.readouterr().err

    return call


def texts(manifest: Path, *spoken: str) -> Path:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines = [json.dumps({**row, "text": text}) + "\n" for row, text in zip(rows, spoken, strict=True)]
    manifest.write_text("".join(lines))
    return manifest


@pytest.fixture
def manifest(noise_manifest: Path) -> Path:
    return texts(noise_manifest, "a bad", "bad", "a", "bad a bad")


def test_emissions_are_computed_once(bundle, manifest, tmp_path, monkeypatch):
    recognizer = asr.load(bundle, "cpu")
    first = tuning.load_speech(recognizer, manifest, tmp_path / "cache")
    for k, utterance in enumerate(sorted(manifest.parent.glob("*.flac"))):
        transcript = recognizer.transcribe(utterance)
        [[hypothesis]] = recognizer.pipeline.decoder(
            Emissions(first.emissions[k][None], np.array([len(first.emissions[k])]), first.frame_seconds)
        )
        assert hypothesis.text == transcript.text
    computed = []
    monkeypatch.setattr(type(recognizer), "emissions", lambda *_: computed.append(1) or pytest.fail("computed again"))
    again = tuning.load_speech(recognizer, manifest, tmp_path / "cache")
    assert all(np.array_equal(a, b) for a, b in zip(first.emissions, again.emissions, strict=True))
    [emissions] = (tmp_path / "cache").glob("*.npy")
    emissions.rename(tmp_path / "moved")
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        tuning.load_speech(recognizer, manifest, tmp_path / "cache")
    (tmp_path / "moved").rename(emissions)
    tuning.load_speech(recognizer, manifest, tmp_path / "cache")
    os.utime(next(manifest.parent.glob("*.flac")), (0, 0))  # another recording of that name
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        tuning.load_speech(recognizer, manifest, tmp_path / "cache")


def test_emissions_of_another_manifest_are_computed(bundle, manifest, tmp_path, monkeypatch):
    recognizer = asr.load(bundle, "cpu")
    tuning.load_speech(recognizer, manifest, tmp_path / "cache")
    monkeypatch.setattr(type(recognizer), "emissions", lambda *_: pytest.fail("computed again"))
    texts(manifest, "a", "a", "a", "a")
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        tuning.load_speech(recognizer, manifest, tmp_path / "cache")


def test_another_search_in_the_same_folder_does_no_harm(bundle, manifest, tmp_path):
    recognizer = asr.load(bundle, "cpu")
    ours = tuning.load_speech(recognizer, manifest, tmp_path / "cache")
    before = [np.array(emissions) for emissions in ours.emissions]
    rows = manifest.read_text().splitlines(keepends=True)
    (reversed_ := manifest.with_name("other.jsonl")).write_text("".join(rows[::-1]))
    tuning.load_speech(recognizer, reversed_, tmp_path / "cache")
    assert all(np.array_equal(a, b) for a, b in zip(before, ours.emissions, strict=True))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_refused_before_the_work(bundle, manifest, tmp_path, refused):
    common = f"checkpoint={bundle}", f"manifest={manifest}"
    assert "Take another name" in refused("tune_decoder", *common, "decoder=greedy", "name=greedy")
    (tmp_path / "file").write_text("mine")
    assert "out=file" in refused("tune_decoder", *common, "decoder=greedy", "out=file")
    assert "out=file: is there already" in refused("label_prior", *common, "out=file")
    (tmp_path / "text").write_text("a bad")
    assert "arpa=file: is there already" in refused("train_lm", "train=text", "out=lm", "arpa=file")
    assert "file/lm: cannot be written" in refused("train_lm", "train=text", "out=file/lm")
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "lm").exists()


def test_results_are_kept_when_groups_are_wrong(bundle, manifest, tmp_path, refused):
    options = "out=kept", "group_by=[speakr]"
    assert "speakr" in refused("evaluate", f"checkpoint={bundle}", f"manifest={manifest}", *options)
    assert len(Path("kept/results.jsonl").read_text().splitlines()) == 4


def test_the_best_options_make_the_fewest_errors(bundle, tmp_path):
    recognizer = asr.load(bundle, "cpu")
    logits = np.random.default_rng(0).normal(0, 2, (5, 30, 10))
    emissions = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
    speech = tuning.Speech([*emissions[:4], emissions[4, :7]], ["a bad", "bad", "a", "bad a bad a", "a a"], 0.04)
    decoder = {"_target_": "asr.decoders.Beam", "lm": str(tmp_path / "words.arpa"), "open_vocabulary": False}
    space = {"lm_weight": [0.0, 0.5, 3.0], "word_score": [-3.0, 0.0, 9.0]}
    trials = tuning.try_options(recognizer, speech, decoder, space, "wer")
    assert len(trials) == 9
    assert [t.counts.errors for t in trials] == sorted(t.counts.errors for t in trials)
    assert len({t.counts.errors for t in trials}) > 2
    for trial in trials[::4]:
        beam = Beam(recognizer.pipeline.tokenizer, lm=decoder["lm"], open_vocabulary=False, **trial.options)
        found = [beam(Emissions(x[None], np.array([len(x)]), 0.04))[0][0].text for x in speech.emissions]
        assert count_words(list(speech.references), found) == trial.counts


def test_command(bundle, manifest, tmp_path, capsys, clean):
    lm = f"decoder.lm={tmp_path / 'words.arpa'}"
    options = ["decoder.open_vocabulary=false", "search.word_score=[0,2]", "search.beam=[5]", "device=cpu"]
    run("tune_decoder", [f"checkpoint={bundle}", f"manifest={manifest}", lm, *options, "install=true", "out=tuned"])
    out = capsys.readouterr().out
    assert "the recognizer's own decoder: WER" in out and "--config-dir tuned decoder=tuned" in out
    found = yaml.safe_load(Path("tuned/decoder/tuned.yaml").read_text())
    assert found["beam"] == 5 and found["lm_weight"] in tuning.WEIGHTS and Path(found["lm"]).is_absolute()
    run("evaluate", [f"checkpoint={bundle}", f"manifest={manifest}", "--config-dir", "tuned", "decoder=tuned"])
    run("evaluate", [f"checkpoint={bundle}", f"manifest={manifest}", "out=own"])
    scores = [line for line in capsys.readouterr().out.splitlines() if "WER" in line]
    assert scores[0] == scores[1], "the bundle has the decoder now"


def test_an_installed_decoder_travels_with_the_bundle(bundle, tmp_path):
    decoder = {"_target_": "asr.decoders.Beam", "lm": str(tmp_path / "words.arpa"), "open_vocabulary": False}
    folder = install_decoder(bundle, decoder)
    (tmp_path / "words.arpa").unlink()
    folder.rename(tmp_path / "moved")
    loaded = asr.load(tmp_path / "moved", "cpu")
    noise = np.random.default_rng(0).normal(size=16000).astype(np.float32)
    words = set(loaded.recognize([noise])[0][0].text.split())
    assert words <= {"a", "bad"}
    config = yaml.safe_load((tmp_path / "moved" / "config.yaml").read_text())
    assert config["decoder"]["lm"] == "bundle:lm/lm.arpa"
    # installing it again, as it is, loses nothing, and neither does another that has no use for it
    for other in (config["decoder"], {"_target_": "asr.decoders.Greedy"}):
        install_decoder(tmp_path / "moved", other)
        assert (tmp_path / "moved/lm/lm.arpa").read_text() == ARPA


def test_results_of_a_zipped_bundle_replace_their_own(bundle, manifest, tmp_path, clean, capsys):
    folder = install_decoder(bundle, {"_target_": "asr.decoders.Beam", "lm": str(tmp_path / "words.arpa")})
    shutil.make_archive(str(tmp_path / "zipped"), "zip", folder)
    for _ in range(2):
        run("evaluate", ["checkpoint=zipped.zip", f"manifest={manifest}"])
        assert "results: evaluation/zipped/train\n" in capsys.readouterr().out
    summary = json.loads(Path("evaluation/zipped/train/summary.json").read_text())
    assert summary["decoder"]["lm"] == "bundle:lm/lm.arpa"


def test_results_of_two_evaluations_at_once(bundle, manifest, clean, monkeypatch):
    def overtaken(*arguments):
        others.write_text('{"decoder": "another"}')
        return decoded(*arguments)

    decoded, others = decode.evaluate_manifest, bundle / "evaluation" / "train" / "summary.json"
    monkeypatch.setattr(decode, "evaluate_manifest", overtaken)
    run("evaluate", [f"checkpoint={bundle}", f"manifest={manifest}"])
    assert others.read_text() == '{"decoder": "another"}'
    assert (bundle / "evaluation" / "train-2" / "results.jsonl").is_file()


def test_a_search_leaves_the_users_files(bundle, manifest, clean, refused):
    mine = [Path("mine", name) for name in ("emissions-of-CO2.json", "emissions.npy", "decoder/tuned.yaml")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    given = [f"checkpoint={bundle}", f"manifest={manifest}", "out=mine", "search.beam=[5]"]
    assert "tuned.yaml: is there already" in refused("tune_decoder", *given)
    run("tune_decoder", [*given, "name=other"])
    assert [path.read_text() for path in mine] == ["mine"] * 3
    run("tune_decoder", [*given, "overwrite=true"])
    assert "beam: 5" in mine[2].read_text()


def test_another_decoder_may_read_the_bundles_files(bundle, manifest, tmp_path, clean, capsys):
    install_decoder(bundle, {"_target_": "asr.decoders.Beam", "lm": str(tmp_path / "words.arpa")})
    (tmp_path / "words.arpa").unlink()
    closed = ["decoder=beam", "decoder.lm=bundle:lm/lm.arpa", "decoder.open_vocabulary=false"]
    run("evaluate", [f"checkpoint={bundle}", f"manifest={manifest}", *closed])
    lm = "decoder.lm=bundle:lm/lm.arpa"
    run("tune_decoder", [f"checkpoint={bundle}", f"manifest={manifest}", lm, "search.lm_weight=[0.5]", "out=tuned"])
    tuned = yaml.safe_load(Path("tuned/decoder/tuned.yaml").read_text())
    assert tuned["lm"] == "bundle:lm/lm.arpa", "and not where a zip was unpacked for the while"
    run("evaluate", [f"checkpoint={bundle}", f"manifest={manifest}", "--config-dir", "tuned", "decoder=tuned"])
    for option, message in {
        "decoder.lm=bundle:lm/no.arpa": "decoder.lm=bundle:lm/no.arpa is missing",
        "decoder.lm=bundle:../../words.arpa": "it lies outside",
    }.items():
        with pytest.raises(SystemExit):
            run("transcribe", [f"checkpoint={bundle}", "decoder=beam", option, str(manifest)])
        assert message in capsys.readouterr().err


def test_a_failure_leaves_the_bundle_as_it_was(bundle, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in (bundle / "bundle").glob("*.*")}
    rename = Path.rename

    def fail(path, target):
        if path.name == "new":
            raise OSError("no space left")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no space"):
        install_decoder(bundle, {"_target_": "asr.decoders.Greedy"})
    assert {path.name: path.read_bytes() for path in (bundle / "bundle").glob("*.*")} == before


def test_only_file_options_are_paths(bundle, tmp_path, monkeypatch):
    (tmp_path / "auto").mkdir()
    monkeypatch.chdir(tmp_path)
    decoder = {"lm": "words.arpa", "lm_device": "auto", "lexicon": "", "beam": {"lm": "nowhere.arpa"}}
    found = tuning.absolute_paths(decoder)
    assert found == {**decoder, "lm": str(tmp_path / "words.arpa")}


def test_models_of_a_nested_search_travel_too(bundle, tmp_path):
    lm = str(tmp_path / "words.arpa")
    folder = install_decoder(bundle, {"_target_": "asr.decoders.Rescored", "lm": lm, "beam": {"lm": lm}})
    (tmp_path / "words.arpa").unlink()
    config = yaml.safe_load((folder / "config.yaml").read_text())["decoder"]
    assert (config["lm"], config["beam"]["lm"]) == ("bundle:lm/lm.arpa", "bundle:lm/beam.lm.arpa")
    assert asr.load(bundle, "cpu").recognize([np.zeros(16000, np.float32)])


def test_a_bundle_reads_nothing_outside_itself(bundle, tmp_path):
    path = bundle / "bundle" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["decoder"] = {"_target_": "asr.decoders.Beam", "lm": "bundle:../../words.arpa"}
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(CheckpointError, match=r"decoder\.lm=bundle:\.\./\.\./words\.arpa: it lies outside"):
        asr.load(bundle, "cpu")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lm_wait": [1]}, "search.lm_wait: the decoder has no option"),
        ({"beam": 50}, r"search.beam=50: must be a list, such as search.beam=\[50\]"),
        ({"beam": []}, "search.beam: the list"),
        ({"search": [25]}, "search.search: decoder.search has options of its own"),
    ],
)
def test_bad_searches(given, message):
    with pytest.raises(ConfigError, match=message):
        tuning.search_space({"beam": 1, "lm": "x", "lm_weight": 1, "search": {"beam": 1}}, given)


def test_what_is_searched_by_default():
    decoder = {"lm": "x", "lm_weight": 0.5, "label_lm": None, "label_lm_weight": 0.5, "word_score": 0.0, "beam": 9}
    assert set(tuning.search_space(decoder, {"beam": None})) == {"lm_weight", "word_score"}
    labels = {**decoder, "lm": None, "label_lm": "x", "label_score": 0.0}
    assert set(tuning.search_space(labels, {})) == {"label_lm_weight", "label_score"}
    assert set(tuning.search_space({**decoder, "lm": None}, {})) == {"word_score"}
    assert tuning.search_space(decoder, {"lm_weight": [0.3]})["lm_weight"] == [0.3]
