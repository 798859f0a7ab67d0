from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import asr
from asr.bundle import pipeline_config, save_bundle
from asr.engines import choose_device
from asr.errors import AudioError, CheckpointError, ConfigError
from asr.pipeline import Pipeline, build
from asr.recognizer import Recognizer
from asr.types import Transcript, Utterance

CONFIG = {
    "text": {"_target_": "asr.text.Normalizer"},
    "tokenizer": {"_target_": "asr.tokenizers.Characters", "labels": " abcdefgh"},
    "featurizer": {"_target_": "asr.featurizers.LogMel", "bands": 20},
    "encoder": {"_target_": "asr.encoders.Blstm", "layers": 1, "width": 16, "channels": 2, "dropout": 0.3},
    "decoder": {"_target_": "asr.decoders.Greedy"},
    "normalization": "utterance",
}


def pipeline() -> Pipeline:
    """Untrained, but with a head that says different labels for different sounds."""
    torch.manual_seed(3)
    built = build(CONFIG)
    with torch.no_grad():
        built.model.head.weight.mul_(20)
    return built


@pytest.fixture
def recognizer() -> Recognizer:
    return Recognizer(pipeline(), device="cpu")


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Ten recordings of noise of different colours, 0.3 to 3 s."""
    paths = []
    for k in range(10):
        random = np.random.default_rng(k)
        samples = np.convolve(random.normal(size=4800 * (1 + (7 * k) % 10)), random.normal(size=8), "same")
        paths.append(str(tmp_path / f"{k}.wav"))
        soundfile.write(paths[-1], 0.1 * samples / np.abs(samples).max(), 16000)
    return paths


def test_transcripts_stand_in_the_order_of_the_files(recognizer, files):
    transcripts = recognizer.transcribe(files)
    assert [t.audio for t in transcripts] == files
    assert [t.duration for t in transcripts] == pytest.approx([0.3 * (1 + (7 * k) % 10) for k in range(10)])
    assert len({t.text for t in transcripts}) > 5
    assert recognizer.transcribe(files[::-1]) == transcripts[::-1]
    assert recognizer.transcribe([]) == []


def test_one_file_or_a_list(recognizer, files):
    one = recognizer.transcribe(files[2])
    assert isinstance(one, Transcript) and one.text
    assert recognizer.transcribe(Path(files[2])) == one
    assert recognizer.transcribe([Path(files[2])]) == [one]
    assert [t.text for t in recognizer.transcribe([files[2], files[2]])] == [one.text, one.text]
    best = one.hypotheses[0]
    assert (best.text, best.words) == (one.text, one.words)
    assert all(0 <= word.start < word.end <= one.duration + 0.04 for word in one.words)


def assert_same(one: Transcript, other: Transcript) -> None:
    """Equal but for the last digits of confidences: other batches and processes may add up in another order."""
    assert (one.audio, one.text, one.duration) == (other.audio, other.text, other.duration)
    assert [(s.text, s.start, s.end) for s in one.segments] == [(s.text, s.start, s.end) for s in other.segments]
    assert [(w.text, w.start, w.end) for w in one.words] == [(w.text, w.start, w.end) for w in other.words]
    confidences = [[w.confidence for w in t.words] for t in (one, other)]
    assert confidences[0] == pytest.approx(confidences[1], abs=1e-4)


@pytest.mark.parametrize("batch_seconds", [0.1, 2.0, 1000.0])
def test_batches_make_no_difference(files, batch_seconds):
    alone = [Recognizer(pipeline(), "cpu").transcribe(path) for path in files]
    for one, other in zip(alone, Recognizer(pipeline(), "cpu", batch_seconds).transcribe(files), strict=True):
        assert_same(one, other)


def test_batches_are_bounded(recognizer, files, monkeypatch):
    recognizer.batch_seconds, sizes, real = 3.0, [], recognizer.emissions

    def counted(waveforms):
        sizes.append(len(waveforms) * max(map(len, waveforms)))
        return real(waveforms)

    monkeypatch.setattr(recognizer, "emissions", counted)
    recognizer.transcribe(files)
    assert max(sizes) <= 3.0 * 16000 and 5 < len(sizes) < 10


def test_goes_on_after_a_broken_file(recognizer, files, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    mixed = [str(tmp_path / "text.wav"), *files[:3], str(tmp_path / "none.wav"), *files[3:]]
    results = dict(recognizer.transcribe_each(Utterance(path) for path in mixed))
    assert sorted(results) == list(range(12))
    assert {k for k, result in results.items() if isinstance(result, AudioError)} == {0, 4}
    assert "text.wav: cannot be read as audio" in str(results[0]) and "none.wav: no such audio" in str(results[4])
    assert [results[k] for k in (1, 2, 3, *range(5, 12))] == recognizer.transcribe(files)
    assert {result.audio for _, result in recognizer.transcribe_each(files)} == {*files}
    with pytest.raises(AudioError, match=r"(text|none)\.wav"):
        recognizer.transcribe(mixed)


def test_nothing_but_broken_files(recognizer, tmp_path):
    [(index, error)] = recognizer.transcribe_each([Utterance(str(tmp_path / "none.wav"))])
    assert index == 0 and isinstance(error, AudioError)


def test_segments_rates_and_channels(recognizer, files, tmp_path):
    samples, _ = soundfile.read(files[4])
    expected = recognizer.transcribe(files[4]).text
    silence = np.zeros(16000)
    soundfile.write(tmp_path / "long.wav", np.concatenate([silence, samples, silence]), 16000)
    segment = Utterance(str(tmp_path / "long.wav"), duration=len(samples) / 16000, offset=1.0)
    [(_, transcript)] = recognizer.transcribe_each([segment])
    assert transcript.text == expected
    soundfile.write(tmp_path / "two.wav", np.stack([0 * samples, samples], 1), 16000)
    assert Recognizer(pipeline(), "cpu", channel=1).transcribe(tmp_path / "two.wav").text == expected
    soundfile.write(tmp_path / "fast.wav", np.repeat(samples, 3), 48000)
    assert recognizer.transcribe(tmp_path / "fast.wav").duration == pytest.approx(len(samples) / 16000)


def test_very_short_audio(recognizer, tmp_path):
    for count in (1, 100, 600):
        soundfile.write(tmp_path / "a.wav", np.full(count, 0.1), 16000)
        assert recognizer.transcribe(tmp_path / "a.wav").duration == pytest.approx(count / 16000)


def test_emissions(recognizer):
    waveforms = [np.random.default_rng(k).normal(size=n).astype(np.float32) for k, n in enumerate((8000, 16000))]
    emissions = recognizer.emissions(waveforms)
    assert emissions.lengths.tolist() == recognizer.model.output_lengths(torch.tensor([8000, 16000])).tolist()
    assert emissions.frame_seconds == pytest.approx(0.04) and not emissions.log_probs.requires_grad


def test_decoder_of_the_device_gets_tensors(recognizer, files):
    seen = []

    class Spy:
        def __init__(self, device):
            self.device, self.decoder = device, recognizer.pipeline.decoder

        def __call__(self, emissions):
            seen.append(type(emissions.log_probs))
            return self.decoder(emissions.numpy())

    for device in (False, True):
        Recognizer(Pipeline(None, None, recognizer.model, Spy(device)), "cpu").transcribe(files[0])
    assert seen == [np.ndarray, torch.Tensor]


def test_dropout_is_off(files):
    built = pipeline()
    built.model.train()
    trained = Recognizer(built, "cpu")
    assert trained.transcribe(files[0]) == trained.transcribe(files[0])


def test_load_gives_the_saved_one(recognizer, files, tmp_path):
    save_bundle(tmp_path / "bundle", recognizer.pipeline, pipeline_config(CONFIG), "")
    loaded = asr.load(tmp_path / "bundle", device="cpu")
    assert loaded.transcribe(files) == recognizer.transcribe(files) and loaded.sample_rate == 16000
    with pytest.raises(CheckpointError, match="no recognizer there"):
        asr.load(tmp_path / "bundel")


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cpu:x", "", "meta"):
        with pytest.raises(ConfigError, match=f"device={name}: must be auto, cpu, or cuda"):
            choose_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"device=cuda: there is no CUDA device here\. Use device=cpu"):
            choose_device("cuda")


def test_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="device=cuda:2: there are only 2 CUDA devices"):
        choose_device("cuda:2")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_transcripts(recognizer, files):
    expected = recognizer.transcribe(files)
    assert [t.text for t in Recognizer(pipeline(), "cuda").transcribe(files)] == [t.text for t in expected]
    with pytest.raises(ConfigError, match="device=cuda:99"):
        choose_device("cuda:99")
