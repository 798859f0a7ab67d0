"""What all recurrent encoders share: masked normalisation, dropout of both kinds, dropped weights, residual layers."""

import pytest
import torch
from torch import nn

from asr.encoders import Blstm, ConvBlstm, Gru
from asr.encoders.dropout import make_dropout
from asr.encoders.layouts import Packed, Padded
from asr.encoders.normalization import MaskedBatchNorm, make_norm, real_frames
from asr.errors import ConfigError
from asr.testing import check_encoder

DIM, WIDTH = 6, 5
LENGTHS = torch.tensor([9, 4, 7])
PLAIN = {"subsampling": "stack", "stride": 1, "layer_norm": False, "dropout": 0.0, "layers": 2, "width": WIDTH}
CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LAYOUTS = [(Blstm, Padded), (Gru, Packed)]


def make(kind=Blstm, **options):
    torch.manual_seed(0)
    return kind(DIM, **{**PLAIN, **options})


def batch():
    return torch.randn(3, 9, DIM, generator=torch.Generator().manual_seed(1))


def real(x, lengths=LENGTHS):
    return torch.cat([row[:length] for row, length in zip(x, lengths.tolist(), strict=True)])


@pytest.mark.parametrize("sizes", [(8,), (3, 8)], ids=["units", "channels"])
def test_masked_batch_norm_is_batch_norm_of_the_real_frames(sizes):
    norm, reference = MaskedBatchNorm(8), nn.BatchNorm1d(8)
    for module in (norm, reference):
        nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(0))
    x = 3 + torch.randn(3, 9, *sizes, generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(LENGTHS.tolist()):
        x[row, length:] = 1000.0
    x.requires_grad_()
    places = real_frames(LENGTHS, 9, x.device)
    for training in (True, True, False):
        ours = norm.train(training)(x, places)
        theirs = reference.train(training)(real(x).flatten(0, -2)).view_as(real(x))
        torch.testing.assert_close(real(ours), theirs, atol=1e-6, rtol=0)
        weights = torch.randn_like(theirs)
        gradients = torch.autograd.grad((real(ours) * weights).sum(), (x, norm.weight))
        expected = torch.autograd.grad((theirs * weights).sum(), (x, reference.weight))
        for one, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(norm.get_buffer(name), buffer)


def test_a_lone_frame_is_normalised_by_the_running_statistics():
    norm = MaskedBatchNorm(2).train()
    norm.running_mean.fill_(1.0)
    x = torch.tensor([[[3.0, 1.0], [9.0, 9.0]]])
    y = norm(x, real_frames(torch.tensor([1]), 2, x.device))
    torch.testing.assert_close(y[0, 0], torch.tensor([2.0, 0.0]), atol=1e-4, rtol=0)
    assert norm.running_mean.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("kind, layout", LAYOUTS)
def test_locked_dropout_holds_for_an_utterance(kind, layout):
    encoder = make(kind, dropout=0.5, dropout_kind="locked", width=64).train()
    x = torch.ones(3, 9, 400)
    given = layout(LENGTHS, 9, x.device)
    assert isinstance(encoder._layout(x, LENGTHS), layout)
    masks = given.leave(encoder._finished(0, given.enter(x), given))
    kept = [row[:length] for row, length in zip(masks, LENGTHS.tolist(), strict=True)]
    assert all(torch.equal(row, row[:1].expand_as(row)) for row in kept)  # the same in all frames
    assert set(masks.unique().tolist()) <= {0.0, 2.0}
    assert not torch.equal(kept[0][0], kept[1][0]) and all(0.4 < (row[0] > 0).float().mean() < 0.6 for row in kept)
    frames = real(make(kind, dropout=0.5).train()._finished(0, x, Padded(LENGTHS, 9, x.device)))
    assert not torch.equal(frames[0], frames[1])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("kind, options", [(Blstm, {}), (Blstm, {"projection": 3}), (Gru, {})])
def test_weight_dropout_drops_recurrent_weights_in_training(kind, options, device):
    encoder = make(kind, weight_dropout=0.4, layers=1, **options).to(device)
    reference = make(kind, layers=1, **options).to(device)
    features = batch().to(device)
    assert torch.equal(encoder.eval()(features, LENGTHS)[0], reference(features, LENGTHS)[0])
    torch.manual_seed(3)
    hidden, _ = encoder.train()(features, LENGTHS)
    torch.manual_seed(3)
    layer = reference.layers[0]
    with torch.no_grad():
        for weights in (layer.weight_hh_l0, layer.weight_hh_l0_reverse):
            weights.copy_(make_dropout(0.4)(weights))
            assert 0 < (weights == 0).float().mean() < 1
    torch.testing.assert_close(real(hidden), real(reference(features, LENGTHS)[0]))
    hidden.square().sum().backward()
    dropped = layer.weight_hh_l0 == 0
    gradient = encoder.layers[0].weight_hh_l0.grad
    assert not gradient[dropped].any() and gradient[~dropped].all()


@pytest.mark.parametrize("kind, layout", LAYOUTS)
@pytest.mark.parametrize("residual", ["add", "highway"])
def test_residual_layers(kind, layout, residual):
    encoder = make(kind, layers=3, residual=residual)
    outputs = []
    encoder(batch(), LENGTHS, lambda k, hidden, lengths: (outputs.append(hidden), hidden)[1])
    assert len(encoder.gates) == (2 if residual == "highway" else 0)
    for row, length in enumerate(LENGTHS.tolist()):
        for k in (1, 2):
            x = outputs[k - 1][row : row + 1, :length]
            y = encoder.layers[k](x)[0]
            if residual == "highway":
                gate = torch.sigmoid(x @ encoder.gates[k - 1].weight.T + encoder.gates[k - 1].bias)
                assert (encoder.gates[k - 1].bias == -1).all()
                expected = gate * y + (1 - gate) * x
            else:
                expected = x + y
            torch.testing.assert_close(outputs[k][row : row + 1, :length], expected)


@pytest.mark.parametrize(
    "options",
    [
        {"dropout_kind": "locked", "dropout": 0.3},
        {"weight_dropout": 0.3, "residual": "add", "projection": 3},
        {"residual": "highway", "layers": 3, "layer_norm": True},
    ],
)
@pytest.mark.parametrize("kind", [Blstm, Gru])
def test_contract(kind, options):
    options = {key: value for key, value in options.items() if kind is Blstm or key != "projection"}
    check_encoder(lambda input_dim: kind(input_dim, **{**PLAIN, **options}), DIM)


@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
@pytest.mark.parametrize("conv_norm", ["layer", "batch", "none"])
def test_conv_blstm_contract(norm, conv_norm):
    options = {"conv_norm": conv_norm, "norm": norm, "activation": "gelu", "conv_dropout": 0.1, "channels": (3, 4)}
    check_encoder(lambda input_dim: ConvBlstm(input_dim, layers=2, width=WIDTH, **options), 12)


def test_conv_blstm_of_deep_speech_2():
    sizes = {"kernels": ((11, 41), (11, 21)), "strides": ((2, 2), (1, 2)), "activation": "hardtanh", "norm": "batch"}
    check_encoder(lambda input_dim: ConvBlstm(input_dim, channels=(2, 2), layers=1, width=WIDTH, **sizes), 12)
    encoder = ConvBlstm(161, layers=1, width=WIDTH, **sizes)
    assert encoder.stride == 2 and encoder.layers[0].input_size == 32 * 41


@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_convolutions_equal_those_of_utterances_alone(norm):
    """In training, by hand: convolve each utterance without padding, pool the frames, normalise."""
    torch.manual_seed(0)
    options = {"kernels": ((5, 3), (3, 3)), "strides": ((2, 2), (1, 2)), "conv_norm": norm}
    front = ConvBlstm(DIM, channels=(3, 4), layers=1, width=WIDTH, **options).subsampling.double().train()
    for module in front.norms:
        if norm != "none":
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    x = batch().double()
    found, lengths = front(x, LENGTHS)
    utterances = [row[None, None, :length] for row, length in zip(x, LENGTHS.tolist(), strict=True)]
    for k, padding in enumerate([(2, 1), (1, 1)]):
        weight, bias, module = front.convolutions[k].weight, front.convolutions[k].bias, front.norms[k]
        utterances = [
            nn.functional.conv2d(u, weight, bias, stride=options["strides"][k], padding=padding) for u in utterances
        ]
        if norm == "batch":
            frames = torch.cat([u.transpose(1, 2).flatten(0, 1) for u in utterances])
            mean, variance = frames.mean((0, 2)), frames.var((0, 2), unbiased=False)
            scale = module.weight / (variance + 1e-5).sqrt()
            utterances = [
                (u - mean[:, None, None]) * scale[:, None, None] + module.bias[:, None, None] for u in utterances
            ]
        elif norm == "layer":
            frames = [
                (u - u.mean((1, 3), True)) / (u.var((1, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
                for u in utterances
            ]
            utterances = [f * module.weight[:, None] + module.bias[:, None] for f in frames]
        utterances = [u.clamp(min=0) for u in utterances]
    for row, utterance in enumerate(utterances):
        expected = utterance[0].transpose(0, 1).flatten(1)
        assert lengths[row] == len(expected)
        torch.testing.assert_close(found[row, : lengths[row]], expected, atol=1e-10, rtol=0)


def test_padding_is_masked_above_a_frozen_norm():
    front = ConvBlstm(DIM, channels=(3, 4), layers=1, width=WIDTH).subsampling.train()
    front.norms.eval()
    nn.init.ones_(front.norms[0].bias)
    given, x = torch.tensor([9, 5, 1]), batch()  # the last frames have padding under their windows
    found, lengths = front(x, given)
    for row, length in enumerate(given.tolist()):
        alone, _ = front(x[row : row + 1, :length], given[row : row + 1])
        torch.testing.assert_close(found[row, : lengths[row]], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["locked", "frame"])
def test_dropout_between_convolutions(kind):
    options = {"conv_norm": "none", "activation": "gelu", "conv_dropout": 0.5, "dropout_kind": kind}
    front = ConvBlstm(DIM, channels=(16, 2), layers=1, **options).subsampling
    seen = []
    front.convolutions[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features = torch.randn(2, 20, DIM)
    for mode in (False, True):
        front.train(mode)(features, torch.tensor([20, 20]))
    ratio = seen[1] / seen[0]  # (B, channels, T, frequencies)
    assert set(ratio.round(decimals=3).unique().tolist()) == {0.0, 2.0}
    assert torch.allclose(ratio, ratio[:, :, :1].expand_as(ratio)) == (kind == "locked")
    assert not torch.allclose(ratio[0], ratio[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (4,)}, "1 channels, 2 kernels and 2 strides"),
        ({"kernels": ((3, 3), (3, 4))}, r"encoder\.kernels=\[\[3, 3\], \[3, 4\]\]: sizes must be odd"),
        ({"strides": ((2, 2), (0, 2))}, "must be 1 or more"),
        ({"strides": ((2, 2), (2,))}, "pairs"),
        ({"activation": "tanh"}, r"encoder\.activation=tanh: must be one of relu, leaky_relu, gelu, hardtanh"),
        ({"conv_norm": "group"}, "'group' is no normalisation: choose 'layer', 'batch' or 'none'"),
        ({"norm": "group"}, "'group' is no normalisation"),
        ({"dropout_kind": "word"}, r"encoder\.dropout_kind=word: must be 'frame' or 'locked'"),
        ({"residual": "dense"}, r"encoder\.residual=dense: must be 'none', 'add' or 'highway'"),
    ],
)
def test_config_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        ConvBlstm(DIM, **options)


def test_norms_over_units():
    x = 2 + 3 * torch.randn(4, 6)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(make_norm("layer", 6)(x), expected)
    assert torch.equal(make_norm("none", 6)(x), x)
