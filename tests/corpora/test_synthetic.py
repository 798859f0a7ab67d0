import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from asr.corpora.espeak import record, resample
from asr.corpora.synthetic import SENTENCES, SLOTS, WANTED, Synthetic
from asr.data.manifest import read_manifest
from asr.errors import ConfigError, DataError
from asr.espeak import Espeak

needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed"
)
SIZES = {"train": 12, "validation": 3, "test": 4}
VARIANTS = [*(f"f{i}" for i in range(1, 6)), "iven", "iven2", "Mike", "mike2", "whisper", "robosoft5", "adam", "max"]


def test_shipped_config_states_the_defaults():
    config = yaml.safe_load((Path(__file__).parents[2] / "conf/corpus/synthetic.yaml").read_text())
    assert config.pop("_target_") == "asr.corpora.synthetic.Synthetic"
    assert Synthetic(**config).arguments() == Synthetic().arguments()


def test_the_grammar_is_small_and_every_slot_known():
    words = " ".join(SENTENCES)
    for name, options in SLOTS.items():
        slot = "{" + name + "}"
        assert slot in words
        words = words.replace(slot, options)
    assert "{" not in words and 40 <= len(set(words.split())) <= 60


def test_voices_are_shared_out_by_family():
    parts = Synthetic().divide(VARIANTS)
    assert parts == Synthetic().divide(VARIANTS[::-1]) != Synthetic(seed=1).divide(VARIANTS)
    flat = [variant for part in parts.values() for variant in part]
    assert sorted(flat) == sorted(set(VARIANTS) - {"whisper", "robosoft5"})
    for relatives in ({"iven", "iven2"}, {"Mike", "mike2"}):
        assert sum(relatives <= set(part) for part in parts.values()) == 1
    with pytest.raises(ConfigError, match=r"corpus\.held_out=0\.6"):
        Synthetic(held_out=0.6).divide(VARIANTS)


def test_the_plan_depends_on_the_seed_only(tmp_path):
    plan = Synthetic().plan("train", VARIANTS, tmp_path)
    assert plan == Synthetic().plan("train", VARIANTS, tmp_path)
    assert plan[:5] == Synthetic(splits={"train": 5}).plan("train", VARIANTS, tmp_path)
    assert plan[:5] != Synthetic(seed=1).plan("train", VARIANTS, tmp_path)[:5]


def test_resample_keeps_a_tone():
    rate, count = 22050, 22050 * 2 + 17
    tone = np.sin(2 * np.pi * 1000 * np.arange(count) / rate) * np.hanning(count)
    ours = resample(tone.astype(np.float32), rate, 16000)
    at = np.arange(len(ours)) / 16000
    exact = np.sin(2 * np.pi * 1000 * at) * np.interp(at * rate, np.arange(count), np.hanning(count))
    assert abs(len(ours) / 16000 - count / rate) < 0.02 and np.abs(ours - exact).max() < 1e-3


def test_record_has_the_level_and_the_noise_asked_for():
    speech = np.sin(np.arange(16000)).astype(np.float32)
    noisy = record(speech, level=-20, snr=20, tilt=1.0, margins=(0.5, 0.25), seed=3)
    assert len(noisy) == 28000 and noisy.dtype == np.float32
    assert 20 * np.log10(np.sqrt((noisy[8000:24000] ** 2).mean())) == pytest.approx(-20, abs=0.5)
    assert 20 * np.log10(np.sqrt((noisy[:8000] ** 2).mean())) == pytest.approx(-40, abs=3)
    assert np.abs(record(speech, level=0, snr=10, tilt=0.0, margins=(0, 0), seed=0)).max() <= 0.9501


def test_without_espeak(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install espeakng-loader"):
        Synthetic().prepare(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_espeak
def test_prepare(tmp_path, monkeypatch):
    (tmp_path / "asr").mkdir()  # what lies in the working directory is not taken for ours
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "语音 a=b"
    report = Synthetic(splits=SIZES).prepare(out)
    assert {split: tally.utterances for split, tally in report.kept.items()} == SIZES
    heard: dict[str, set[str]] = {}
    for split, manifest in report.manifests.items():
        for utterance in read_manifest(manifest):
            info = soundfile.info(utterance.audio_filepath)
            assert (info.samplerate, info.channels, info.format) == (16000, 1, "FLAC")
            assert 0.5 < utterance.duration < 6 and utterance.extra["accent"] in Synthetic().accents
            times = utterance.extra["word_times"]
            assert len(times) == len(utterance.text.split()) and 0.1 < times[0][0] < times[-1][1] < utterance.duration
            heard.setdefault(split, set()).add(utterance.speaker.split("+")[1])
        row = json.loads(manifest.read_text().splitlines()[0])
        assert row["audio_filepath"] == f"audio/{split}/{split}-00000.flac"
    assert sum(map(len, heard.values())) == len(set.union(*heard.values()))


@needs_espeak
@pytest.mark.parametrize("voice", ["en+m3", "en-gb-scotland+Annie", "en-gb-x-rp+m1"])
def test_words_are_where_their_sound_is(tmp_path, voice):
    [(_, request)] = Synthetic(splits={"train": 1}).plan("train", ["f1"], tmp_path)
    request["recording"] |= {"level": -20, "snr": 60, "margins": (0.5, 0.4)}

    def speak(espeak, text) -> tuple[list, np.ndarray]:
        speech = request["speech"] | {"text": text, "voice": voice}
        found = espeak.ask({**request, "speech": speech, "path": str(tmp_path / "a.flac")})
        return found["word_times"], soundfile.read(tmp_path / "a.flac")[0]

    def level(samples, start, end) -> float:
        return 10 * np.log10(np.mean(samples[round(16000 * start) : round(16000 * end)] ** 2))

    with Espeak(*WANTED) as espeak:
        times, samples = speak(espeak, "two two two")
        for start, _ in times:  # a burst after silence
            assert level(samples, start, start + 0.05) > level(samples, start - 0.03, start - 0.005) + 25
        end = times[-1][1]
        assert level(samples, end + 0.03, len(samples) / 16000) < level(samples, 0.5, end) - 40
        times, samples = speak(espeak, "turn off the light in the kitchen")
        assert times[4][1] is None and times[5][0] is None, "'in the' is one word to espeak-ng"
        assert sorted(flat := [time for word in times for time in word if time is not None]) == flat
        n_of_turn = (times[1][0] - 0.06, times[1][0] - 0.01)  # linked to the vowel after it
        assert level(samples, *n_of_turn) > level(samples, 0.5, times[-1][1]) - 15


@needs_espeak
def test_failures_are_contained(tmp_path):
    corpus = Synthetic(splits={"train": 1})
    request = corpus.plan("train", ["f1"], tmp_path)[0][1] | {"path": str(tmp_path / "a.flac")}
    with Espeak(*WANTED) as espeak:
        assert espeak.ask(request)["duration"] > 0.5 and (tmp_path / "a.flac").exists()
        assert "no voice" in espeak.ask(request | {"speech": request["speech"] | {"voice": "xx+f1"}})["error"]
        espeak.process.kill()
        assert "died with status -9" in espeak.ask(request)["error"]
        assert "error" not in espeak.ask(request)
        with pytest.raises(OSError, match="No such file"):
            espeak.ask(request | {"path": str(tmp_path / "no/a.flac")})
    with pytest.raises(DataError, match=r"no utterance can be kept.*synthesis failed"):
        Synthetic(splits={"train": 2}, accents=["xx"]).prepare(tmp_path / "out")
