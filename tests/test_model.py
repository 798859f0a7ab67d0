import pytest
import torch

from asr.encoders import Blstm, Gru
from asr.errors import ConfigError
from asr.featurizers import LogMel, Mfcc, Spectrogram
from asr.model import AcousticModel
from asr.testing import check_model

FEATURIZERS = {"log_mel": LogMel, "mfcc": Mfcc, "spectrogram": Spectrogram}
ENCODERS = {
    "blstm": Blstm,
    "blstm-projection": lambda dim, **options: Blstm(dim, projection=8, **options),
    "lstm-stack": lambda dim, **options: Blstm(dim, bidirectional=False, subsampling="stack", **options),
    "gru": Gru,
}


def make(featurizer="log_mel", encoder="blstm", normalization="global") -> AcousticModel:
    torch.manual_seed(0)
    stage = FEATURIZERS[featurizer]()
    model = AcousticModel(stage, ENCODERS[encoder](stage.dim, layers=2, width=16, channels=4), 12, normalization)
    if normalization == "global":
        features, _ = stage(utterances(32000, seed=1)[0][None], torch.tensor([32000]))
        model.normalization.set_statistics(features[0].mean(0), features[0].std(0).clamp(min=1))
    with torch.no_grad():
        model.head.weight.mul_(2)  # far from uniform, so that a leak would show
    return model.eval()


def utterances(*lengths, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [1e-3 * torch.randn(length, generator=random) for length in lengths]


@torch.no_grad()
def alone(model, utterance):
    log_probs, lengths = model(utterance[None], torch.tensor([len(utterance)]))
    return log_probs[0, : lengths[0]]


@pytest.mark.parametrize("normalization", ["global", "utterance"])
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("featurizer", FEATURIZERS)
@torch.no_grad()
def test_padding_and_neighbours_change_nothing(featurizer, encoder, normalization):
    """An utterance alone and in a batch: a tenth of the longest, NaN in its padding, a neighbour 60 dB louder."""
    model = make(featurizer, encoder, normalization)
    waveforms = utterances(3200, 32000, 17003, 700, 100)
    waveforms[1] *= 1000
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    # The cosine transform takes differences of energies; over the deviation of four frames their rounding shows.
    tolerance = 5e-5 if featurizer == "mfcc" else 1e-5
    for value in (0.0, float("nan")):
        padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True, padding_value=value)
        log_probs, frames = model(padded, lengths)
        assert torch.equal(frames, model.output_lengths(lengths))
        for row, waveform in enumerate(waveforms):
            expected = alone(model, waveform)
            assert len(expected) == frames[row]
            torch.testing.assert_close(log_probs[row, : frames[row]], expected, atol=tolerance, rtol=0)


@torch.no_grad()
def test_emissions_are_distributions():
    for value in utterances(8000)[0], torch.zeros(8000), torch.ones(8000):
        log_probs = alone(make(), value)
        assert log_probs.dtype == torch.float32 and log_probs.shape[1] == 12
        torch.testing.assert_close(log_probs.logsumexp(-1), torch.zeros(len(log_probs)), atol=1e-6, rtol=0)


@torch.no_grad()
def test_emissions_depend_on_the_audio():
    one, other = (alone(make(), waveform) for waveform in utterances(8000, 8000))
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("encoder", ENCODERS)
@torch.no_grad()
def test_output_lengths_are_the_real_ones(encoder):
    model = make(encoder=encoder)
    for length in [1, 400, 511, 512, 671, 672, 673, 1151, 1152, 5000]:
        log_probs, frames = model(torch.zeros(1, length), torch.tensor([length]))
        assert log_probs.shape[1] == frames.item() == model.output_lengths(torch.tensor([length])).item() >= 1


def test_frame_seconds():
    assert make().frame_seconds == pytest.approx(0.04) and make().sample_rate == 16000


@torch.no_grad()
def test_features_are_normalised_and_zero_in_the_padding():
    waveforms = utterances(16000, 4000)
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True, padding_value=float("nan"))
    features, lengths = make(normalization="utterance").features(padded, torch.tensor([16000, 4000]))
    assert not features[1, lengths[1] :].any() and features.isfinite().all()
    torch.testing.assert_close(features[1, : lengths[1]].mean(0), torch.zeros(80), atol=1e-4, rtol=0)


def test_log_softmax_stays_in_float32_under_autocast():
    model = make()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        log_probs, _ = model(utterances(8000)[0][None], torch.tensor([8000]))
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.logsumexp(-1), torch.zeros(1, log_probs.shape[1]), atol=1e-6, rtol=0)


def test_tap_reaches_the_encoder():
    model, seen = make(), []

    def look(layer, hidden, lengths):
        seen.append(layer)
        return hidden

    model.encode(*model.features(utterances(8000)[0][None], torch.tensor([8000])), look)
    assert seen == [0, 1]


def test_state_holds_the_statistics():
    model, copy = make(), make()
    copy.normalization.set_statistics(torch.zeros(80), torch.ones(80))
    copy.load_state_dict(model.state_dict())
    waveform = utterances(8000)[0]
    assert torch.equal(alone(copy, waveform), alone(model, waveform))


@pytest.mark.parametrize("encoder", [Blstm, Gru])
@torch.no_grad()
def test_self_conditioning(encoder):
    """Each conditioned layer by its formula, on an utterance alone."""
    torch.manual_seed(0)
    stack = encoder(80, layers=3, width=16, channels=4)
    model = AcousticModel(LogMel(), stack, 12, self_conditioning=[1, 2]).eval()
    features, lengths = model.features(utterances(8000)[0][None], torch.tensor([8000]))
    x = stack.norms[0](stack.subsampling(features, lengths)[0])
    for layer, norm in zip(stack.layers, stack.norms[1:], strict=True):
        x = norm(layer(x)[0])
        log_probs = model.head(x).log_softmax(-1)
        x = x + log_probs.exp() @ model.conditioning.weight.T + model.conditioning.bias
    torch.testing.assert_close(model.encode(features, lengths)[0], log_probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_padding_and_neighbours_change_nothing_under_self_conditioning(encoder):
    torch.manual_seed(0)
    model = AcousticModel(LogMel(), ENCODERS[encoder](80, layers=2, width=16, channels=4), 12, self_conditioning=[1])
    check_model(model)


def test_self_conditioning_of_the_last_layer_is_refused():
    with pytest.raises(ConfigError, match=r"self_conditioning=\[2\].*from \[1\]"):
        AcousticModel(LogMel(), Blstm(80, layers=2, width=16, channels=4), 12, self_conditioning=[2])


def test_unknown_normalization():
    with pytest.raises(ConfigError, match="normalization=batch: must be one of global, utterance"):
        make(normalization="batch")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_cuda_equals_cpu(monkeypatch):
    for backend in (torch.backends.cudnn, torch.backends.cuda.matmul):
        monkeypatch.setattr(backend, "allow_tf32", False)
    waveforms = torch.stack(utterances(16000, 16000))
    lengths = torch.tensor([16000, 1600])
    expected, frames = make()(waveforms, lengths)
    log_probs, same = make().cuda()(waveforms.cuda(), lengths)
    assert torch.equal(frames, same)
    for row, count in enumerate(frames.tolist()):
        torch.testing.assert_close(log_probs[row, :count].cpu(), expected[row, :count], atol=1e-4, rtol=0)
