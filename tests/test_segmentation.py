from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from asr.data.audio import read_audio
from asr.encoders import Blstm
from asr.errors import AudioError, ConfigError
from asr.featurizers import LogMel
from asr.model import AcousticModel
from asr.pipeline import Pipeline
from asr.recognizer import Recognizer
from asr.segmentation import LongAudio, long_emissions


def recognizer(**options) -> Recognizer:
    torch.manual_seed(0)
    featurizer = LogMel(bands=20)
    encoder = Blstm(input_dim=20, layers=1, width=16, channels=2, **options)
    for name, parameter in encoder.layers[0].named_parameters():
        if name.startswith("bias_ih"):
            parameter.data[16:32] = -3  # the forget gates: what lies beyond the context makes no difference
    return Recognizer(Pipeline(None, None, AcousticModel(featurizer, encoder, 5), None), "cpu")


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=samples).astype(np.float32)


@pytest.mark.parametrize("options", [{}, {"subsampling": "stack", "stride": 3}, {"stride": 2}], ids=str)
def test_windows_have_the_frames_of_the_whole(options):
    recognize = recognizer(**options)
    stride = round(recognize.model.frame_seconds * 16000)
    for samples in (100, 16000, *range(400 * stride - 2, 400 * stride + 900, 97)):
        audio = noise(samples)
        [whole] = recognize.emissions([audio]).numpy().log_probs
        parts = list(long_emissions(recognize, audio, window=1.0, context=1.0))
        assert len(parts) == 1 if samples <= 16000 else len(parts) > 5
        found = np.concatenate(parts)
        assert found.shape == whole.shape
        assert np.abs(found - whole).max() < 1e-5


def test_a_short_recording_is_run_in_one_piece():
    recognize, audio = recognizer(), noise(4 * 16000)
    [found] = long_emissions(recognize, audio, window=2.0, context=1.0)
    assert np.array_equal(found, recognize.emissions([audio]).numpy().log_probs[0])


def test_context_that_does_not_reach():
    with pytest.raises(ConfigError, match=r"Blstm gives 97 frames .* has 100\. .*give it more context"):
        list(long_emissions(recognizer(subsampling="stack", stride=1), noise(5 * 16000), window=1.0, context=0.0))


@pytest.mark.parametrize(("rate", "name"), [(16000, "a.wav"), (44100, "a.flac"), (16000, "a.ogg"), (44100, "a.mp3")])
def test_slices_of_a_file(tmp_path, rate, name):
    soundfile.write(tmp_path / name, 0.1 * noise(3 * rate), rate)
    whole, lazy = read_audio(tmp_path / name, 16000), LongAudio(tmp_path / name, 16000)
    assert len(lazy) == len(whole) == 3 * 16000
    for start, stop in ((0, 16000), (640, 2 * 16000), (16000, 3 * 16000), (2 * 16000, 4 * 16000)):
        found, expected = lazy[start:stop], whole[start:stop]
        assert found.shape == expected.shape
        assert np.abs(found - expected)[200:-200].max() < 1e-5  # resampling sees no neighbours at the edges


def test_slices_of_a_segment(tmp_path):
    samples = np.stack([0.1 * noise(3 * 16000), np.zeros(3 * 16000)], 1)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    lazy = LongAudio(tmp_path / "a.wav", 16000, offset=0.5, duration=2.0, channel=0)
    assert len(lazy) == 32000
    assert np.array_equal(lazy[100:32000], samples[8100:40000, 0].astype(np.float32))
    assert len(LongAudio(tmp_path / "a.wav", 16000, offset=0.5)) == 40000


def test_files_that_are_not_whole(tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * noise(3 * 16000), 16000)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:60_000])
    with pytest.raises(AudioError, match=r"cut\.wav: cut short"):
        LongAudio(tmp_path / "cut.wav", 16000)
    with pytest.raises(AudioError, match=r"none\.wav: no such audio file"):
        LongAudio(tmp_path / "none.wav", 16000)
    with pytest.raises(AudioError, match="has no channel 1"):
        LongAudio(tmp_path / "a.wav", 16000, channel=1)
