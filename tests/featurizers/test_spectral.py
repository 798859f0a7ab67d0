import pytest
import torch
import torchaudio

from asr.errors import ConfigError
from asr.featurizers import LogMel, Mfcc, Spectrogram

MEL = {"win_length": 400, "hop_length": 160, "center": False, "f_min": 20.0}


@pytest.fixture(params=[16000, 512, 513, 4321])
def waveform(request):
    return 0.1 * torch.randn(1, request.param, generator=torch.Generator().manual_seed(request.param))


def features(featurizer, waveform):
    output, lengths = featurizer(waveform, torch.tensor([waveform.shape[1]]))
    assert lengths.dtype == torch.int64 and lengths.tolist() == [output.shape[1]]
    assert output.shape == (1, lengths.item(), featurizer.dim) and output.dtype == torch.float32
    return output[0].T


def test_log_mel_equals_torchaudio(waveform):
    mel = torchaudio.transforms.MelSpectrogram(16000, n_fft=512, n_mels=80, **MEL)(waveform[0])
    torch.testing.assert_close(features(LogMel(), waveform), (mel + 1e-6).log(), atol=2e-5, rtol=1e-5)


def test_mfcc_equals_torchaudio(waveform):
    mfcc = torchaudio.transforms.MFCC(16000, n_mfcc=40, log_mels=True, melkwargs={"n_fft": 512, "n_mels": 80} | MEL)
    torch.testing.assert_close(features(Mfcc(), waveform), mfcc(waveform[0]), atol=1e-4, rtol=1e-5)


def test_spectrogram_equals_torchaudio(waveform):
    options = {"n_fft": 512, "win_length": 320, "hop_length": 160, "power": 1.0, "center": False}
    spectrum = torchaudio.transforms.Spectrogram(**options)(waveform[0])
    torch.testing.assert_close(features(Spectrogram(), waveform), (spectrum + 1e-6).log(), atol=2e-5, rtol=1e-5)


def test_other_options():
    waveform = 0.1 * torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    ours = LogMel(8000, bands=40, window_ms=32, hop_ms=16, low_hz=100, high_hz=3800, floor=1e-3)
    options = {"win_length": 256, "hop_length": 128, "center": False, "f_min": 100.0, "f_max": 3800.0}
    mel = torchaudio.transforms.MelSpectrogram(8000, n_fft=256, n_mels=40, **options)(waveform[0])
    torch.testing.assert_close(features(ours, waveform), (mel + 1e-3).log(), atol=2e-5, rtol=1e-5)
    assert (ours.sample_rate, ours.dim, ours.frame_shift) == (8000, 40, 0.016)


@pytest.mark.parametrize("kind", [LogMel, Mfcc, Spectrogram])
def test_frames_are_counted_for_every_length(kind):
    featurizer = kind()
    assert featurizer.frame_shift == 0.01
    for length in [1, 100, 511, 512, 671, 672, 673, 1000, 16000]:
        output, _ = featurizer(torch.zeros(1, length), torch.tensor([length]))
        assert featurizer.output_lengths(torch.tensor([length])).tolist() == [output.shape[1]]


@pytest.mark.parametrize("kind", [LogMel, Mfcc, Spectrogram])
def test_shorter_than_a_window_is_one_frame_of_zero_padding(kind):
    featurizer, waveform = kind(), torch.rand(1, 100)
    padded = torch.nn.functional.pad(waveform, (0, 412))
    torch.testing.assert_close(features(featurizer, waveform), features(featurizer, padded), atol=0, rtol=0)
    assert features(featurizer, waveform).isfinite().all()


@pytest.mark.parametrize("kind", [LogMel, Mfcc, Spectrogram])
def test_silence_is_finite(kind):
    assert features(kind(), torch.zeros(1, 2000)).isfinite().all()


@pytest.mark.parametrize("kind", [LogMel, Mfcc, Spectrogram])
def test_loud_neighbour_changes_nothing(kind):
    """torchaudio's MFCC clips to the loudest of the batch."""
    featurizer = kind()
    quiet, loud = 1e-3 * torch.randn(1, 4000), torch.randn(1, 4000)
    together, _ = featurizer(torch.cat([quiet, loud]), torch.tensor([4000, 4000]))
    torch.testing.assert_close(together[0].T, features(featurizer, quiet), atol=1e-5, rtol=1e-5)


def test_nothing_of_a_featurizer_is_saved():
    """Windows and filters follow from the config, so they are no part of the weights."""
    for kind in (LogMel, Mfcc, Spectrogram):
        assert not kind().state_dict()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Spectrogram, {"hop_ms": 0}, "hop_ms=0 must be above 0"),
        (Spectrogram, {"hop_ms": 30, "window_ms": 20}, "hop_ms=30 must be above 0 and at most window_ms=20"),
        (LogMel, {"low_hz": 4000, "high_hz": 400}, "low_hz=4000 and high_hz=400 must ascend"),
        (LogMel, {"sample_rate": 8000, "high_hz": 8000}, r"within 4000\.0 Hz, half of sample_rate=8000"),
        (Mfcc, {"coefficients": 41, "bands": 40}, "coefficients=41 must be 1 or more, at most bands=40"),
        (Mfcc, {"coefficients": 0}, "coefficients=0 must be 1 or more"),
        (LogMel, {"bands": 0}, "bands=0: must be 1 or more"),
        (LogMel, {"floor": 0.0}, r"floor=0\.0: must be above 0"),
    ],
)
def test_config_errors(kind, options, message):
    with pytest.raises(ConfigError, match=message):
        kind(**options)
