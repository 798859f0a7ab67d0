from __future__ import annotations

import itertools
import weakref

import numpy as np
import pytest
import torch

from asr.encoders import Blstm
from asr.errors import ConfigError
from asr.featurizers import LogMel
from asr.model import AcousticModel
from asr.pipeline import Pipeline
from asr.recognizer import Recognizer
from asr.segmentation import CONTEXT, Piece, Segmenter, long_emissions
from asr.vad import Everything


def recognizer(**options) -> Recognizer:
    torch.manual_seed(0)
    featurizer = LogMel(bands=20)
    encoder = Blstm(input_dim=20, layers=1, width=16, channels=2, **options)
    for name, parameter in encoder.layers[0].named_parameters():
        if name.startswith("bias_ih"):
            parameter.data[16:32] = -3  # the forget gates: what lies beyond the context makes no difference
    return Recognizer(Pipeline(None, None, AcousticModel(featurizer, encoder, 5), None), "cpu")


def blocks(audio: np.ndarray, size: int) -> list[np.ndarray]:
    return [audio[start : start + size] for start in range(0, len(audio), size)]


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=samples).astype(np.float32)


@pytest.mark.parametrize("options", [{}, {"subsampling": "stack", "stride": 3}, {"stride": 2}], ids=str)
def test_windows_have_the_frames_of_the_whole(options):
    recognize = recognizer(**options)
    stride = round(recognize.model.frame_seconds * 16000)
    for samples in (100, 16000, *range(400 * stride - 2, 400 * stride + 900, 97)):
        audio = noise(samples)
        [whole] = recognize.emissions([audio]).numpy().log_probs
        parts = list(long_emissions(recognize, blocks(audio, 30000), window=1.0, context=1.0))
        assert len(parts) == 1 if samples <= 16000 else len(parts) > 5
        found = np.concatenate(parts)
        assert found.shape == whole.shape
        assert np.abs(found - whole).max() < 1e-5


def test_a_short_recording_is_run_in_one_piece():
    recognize, audio = recognizer(), noise(4 * 16000)
    [found] = long_emissions(recognize, [audio], window=2.0, context=1.0)
    assert np.array_equal(found, recognize.emissions([audio]).numpy().log_probs[0])


def test_context_that_does_not_reach():
    with pytest.raises(ConfigError, match=r"gives 97 frames .* has 100\. .*give it more context"):
        list(long_emissions(recognizer(subsampling="stack", stride=1), [noise(5 * 16000)], window=1.0, context=0.0))


# --- pieces

RATE, FRAME = 8000, 0.04


class Marked:
    """Takes for speech what is not zero."""

    frame_ms = 10

    def __call__(self, blocks, sample_rate):
        for samples in blocks:
            frames = np.pad(samples, (0, -len(samples) % 80)).reshape(-1, 80)
            yield frames.any(axis=1)


def recording(*stretches: tuple[float, float], seconds: float) -> np.ndarray:
    """Zero, but for the stretches, where sample n is n."""
    samples = np.arange(round(seconds * RATE), dtype=np.float32) + 1
    spoken = np.zeros(len(samples), np.bool_)
    for start, end in stretches:
        spoken[round(start * RATE) : round(end * RATE)] = True
    return np.where(spoken, samples, 0).astype(np.float32)


def split(samples: np.ndarray, size: float = 60.0, **options) -> list[Piece]:
    vad = options.pop("vad", Marked())
    return list(Segmenter(vad, **options).split(blocks(samples, round(size * RATE)), RATE, FRAME))


def places(pieces: list[Piece]) -> list[tuple[float, float]]:
    return [(round(piece.start, 3), round(piece.start + len(piece) / RATE, 3)) for piece in pieces]


def test_what_fits_into_a_window_is_not_cut():
    for seconds in (0.001, 20.0, 40.0):
        samples = recording((1.0, 2.0), (10.0, 11.0), seconds=seconds)
        [piece] = split(samples, size=7.0)
        assert np.array_equal(piece.samples, samples) and piece.start == 0 and piece.whole
    assert len(split(recording((1.0, 2.0), (10.0, 11.0), seconds=40.1), size=7.0)) == 2
    assert len(split(recording((1.0, 2.0), (10.0, 11.0), seconds=20.0), max_segment=5.0)) == 2


@pytest.mark.parametrize("size", [0.5, 3.33, 60.0, 1000.0])
def test_cuts_at_pauses(size):
    stretches = [(0.0, 1.0), (1.5, 3.0), (3.6, 3.7), (20.0, 30.0), (99.0, 100.0)]  # 0.5 s are no pause
    pieces = split(recording(*stretches, seconds=100.0), size)
    assert places(pieces) == [(0.0, 3.3), (3.3, 4.0), (19.7, 30.3), (98.7, 100.0)]
    assert [piece.stretch for piece in pieces] == [0, 1, 2, 3] and all(piece.whole for piece in pieces)
    for piece in pieces:  # the very samples of that place
        heard = np.flatnonzero(piece.samples)
        assert np.array_equal(piece.samples[heard], heard + round(piece.start * RATE) + 1)


@pytest.mark.parametrize(("min_pause", "count"), [(0.1, 4), (0.25, 3), (0.45, 2), (0.7, 1)])
def test_pauses_of_any_length(min_pause, count):
    samples = recording((1.0, 2.0), (2.2, 3.0), (3.4, 4.0), (4.6, 5.0), seconds=50.0)
    pieces = split(samples, min_pause=min_pause)
    assert len(pieces) == count
    for (_, end), (start, _) in itertools.pairwise(places(pieces)):
        assert end <= start  # nothing is heard twice


def test_clicks_and_silence():
    assert split(recording(seconds=100.0)) == []
    assert split(recording((10.0, 10.05), seconds=100.0)) == []
    assert len(split(recording((10.0, 10.05), (10.3, 10.36), seconds=100.0))) == 1


@pytest.mark.parametrize("size", [0.7, 13.0, 1000.0])
@pytest.mark.parametrize("seconds", [40.0, 41.0, 70.0, 100.04, 159.99])
def test_speech_without_a_pause_is_run_in_windows(size, seconds):
    samples = recording((0.0, seconds), seconds=seconds)
    pieces = split(samples, size, vad=Everything())
    assert max(map(len, pieces)) <= (30 + 2 * CONTEXT) * RATE
    assert [piece.window for piece in pieces] == list(range(len(pieces)))
    assert [piece.keep for piece in pieces[:-1]] == [750] * (len(pieces) - 1) and pieces[-1].keep is None
    at = 0.0
    for k, piece in enumerate(pieces):
        assert piece.start == pytest.approx(at)
        assert piece.skip == (0 if k == 0 else 125)
        first = round(piece.start * RATE) - piece.skip * 320
        assert np.array_equal(piece.samples, samples[first : first + len(piece)])
        if piece.keep:
            assert len(piece) == (piece.skip + piece.keep + 125) * 320  # context behind it, too
        at += 30.0
    assert first + len(piece) == len(samples)


def test_a_stretch_with_windows_among_others():
    pieces = split(recording((5.0, 6.0), (10.0, 100.0), (110.0, 111.0), seconds=120.0), size=9.0)
    assert [(piece.stretch, piece.window) for piece in pieces] == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert [piece.whole for piece in pieces] == [True, False, False, False, True]
    assert pieces[1].start == pytest.approx(9.7) and pieces[3].start == pytest.approx(69.7)


def test_reads_no_further_than_it_must():
    """Hours of audio: what waits in memory does not grow, and pieces come while it is read."""
    read, seen = 0, []

    def endless():
        nonlocal read
        for _ in range(600):
            read += 1
            yield np.tile(recording((0.5, 9.0), seconds=10.0), 6)

    for piece in Segmenter(Marked()).split(endless(), RATE, FRAME):
        seen.append(piece.start / 60)
        assert read - 2 <= seen[-1] + 1
    assert len(seen) == 3600 and read == 600


def test_options_out_of_range():
    for options in ({"max_segment": 0.5}, {"max_segment": np.inf}, {"min_pause": 0.0}, {"min_pause": np.nan}):
        with pytest.raises(ConfigError, match=r"max_segment=.* must be 1 s or more, and min_pause=.* above 0"):
            Segmenter(**options)


def test_blocks_are_let_go():
    alive: list[weakref.ref] = []
    most = 0

    def minutes():
        nonlocal most
        for _ in range(40):
            block = recording((1.0, 50.0), seconds=60.0)
            alive.append(weakref.ref(block))
            yield block
            del block
            most = max(most, sum(one() is not None for one in alive))

    for vad in (Everything(), Marked()):
        assert sum(len(piece) for piece in Segmenter(vad).split(minutes(), RATE, FRAME)) > 40 * 45 * RATE
    assert most <= 3
