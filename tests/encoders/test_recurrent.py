import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from asr.encoders import Blstm, Gru
from asr.encoders.layouts import Packed, Padded
from asr.errors import ConfigError

DIM = 10
LENGTHS = torch.tensor([50, 5, 37, 50, 1])
OPTIONS = [
    dict(zip(("subsampling", "stride", "bidirectional", "layer_norm"), values, strict=True))
    for values in itertools.product(["stack", "conv"], [2, 4], [True, False], [True, False])
] + [{"subsampling": "stack", "stride": 1}, {"subsampling": "stack", "stride": 3}, {"projection": 4}]


def name(options):
    return "-".join(map(str, options.values()))


def make(kind=Blstm, **options):
    torch.manual_seed(0)
    return kind(DIM, **{"layers": 2, "width": 8, "channels": 4, **options}).eval()


def batch(lengths=LENGTHS, value=0.0):
    features = torch.randn(len(lengths), int(lengths.max()), DIM, generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(lengths.tolist()):
        features[row, length:] = value
    return features


def real(hidden, lengths):
    """The frames (F, H) that are no padding."""
    return torch.cat([row[:length] for row, length in zip(hidden, lengths.tolist(), strict=True)])


def gradients(encoder, hidden, lengths):
    """Of random numbers times the output: of a plain sum, what a LayerNorm gives has no gradient."""
    frames = real(hidden, lengths)
    weights = torch.randn(frames.shape, generator=torch.Generator().manual_seed(2), dtype=frames.dtype)
    return torch.autograd.grad((frames * weights.to(frames.device)).sum(), list(encoder.parameters()))


def assert_same(one, other, tolerance):
    for a, b in zip(one, other, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Blstm, {}),
        (Blstm, {"bidirectional": False}),
        (Blstm, {"projection": 3}),
        (Gru, {}),
        (Gru, {"bidirectional": False}),
    ],
)
def test_equals_torch_on_packed_sequences(kind, options, layers):
    plain = {"subsampling": "stack", "stride": 1, "layer_norm": False, "dropout": 0.0}
    encoder = make(kind, layers=layers, **plain, **options).double()
    sizes = {"proj_size": options["projection"]} if "projection" in options else {}
    stack = kind.cell(DIM, 8, layers, batch_first=True, bidirectional=options.get("bidirectional", True), **sizes)
    stack = stack.double()
    for k, layer in enumerate(encoder.layers):  # layer k's weights are called weight_ih_lk, weight_ih_lk_reverse, …
        for key, value in layer.state_dict().items():
            stack.state_dict()[key.replace("_l0", f"_l{k}")].copy_(value)
    features = batch().double()
    packed, _ = stack(pack_padded_sequence(features, LENGTHS, batch_first=True, enforce_sorted=False))
    expected, _ = pad_packed_sequence(packed, batch_first=True)
    hidden, lengths = encoder(features, LENGTHS)
    assert torch.equal(lengths, LENGTHS) and hidden.shape[2] == encoder.dim
    torch.testing.assert_close(real(hidden, lengths), real(expected, lengths), atol=1e-12, rtol=0)
    names = [[key for key, _ in layer.named_parameters()] for layer in encoder.layers]
    theirs = dict(zip(dict(stack.named_parameters()), gradients(stack, expected, LENGTHS), strict=True))
    ordered = [theirs[key.replace("_l0", f"_l{k}")] for k, keys in enumerate(names) for key in keys]
    ours = dict(zip(dict(encoder.named_parameters()), gradients(encoder, hidden, lengths), strict=True))
    assert_same(ours.values(), ordered, 1e-12)


@pytest.mark.parametrize("options", [o for o in OPTIONS if "projection" not in o], ids=name)
def test_plain_path_equals_packed_path(options):
    """On a CPU the layers run unpacked, the backward direction on reversed utterances."""
    encoder = make(**options)
    x, lengths = encoder.subsampling(batch(), LENGTHS)
    plain, _ = encoder._run(Padded(lengths, x.shape[1], x.device), x)
    x, _ = encoder.subsampling(batch(), LENGTHS)
    packed, _ = encoder._run(Packed(lengths, x.shape[1], x.device), x)
    torch.testing.assert_close(real(plain, lengths), real(packed, lengths), atol=5e-6, rtol=0)
    assert_same(gradients(encoder, plain, lengths), gradients(encoder, packed, lengths), 1e-4)


def test_cpu_takes_the_plain_path_for_the_lstm_only():
    for encoder, kind in ((make(), Padded), (make(projection=4), Packed), (make(Gru), Packed)):
        assert isinstance(encoder._layout(torch.zeros(1, 4, 8), torch.tensor([4])), kind)


@pytest.mark.parametrize("value", [0.0, 1000.0, float("nan")])
@pytest.mark.parametrize("options", OPTIONS, ids=name)
@pytest.mark.parametrize("kind", [Blstm, Gru])
def test_padding_changes_nothing(kind, options, value):
    if kind is Gru and "projection" in options:
        options = {"layers": 3}
    encoder = make(kind, **options)
    features = batch(value=value)
    hidden, lengths = encoder(features, LENGTHS)
    assert torch.equal(lengths, encoder.output_lengths(LENGTHS)) and hidden.shape[2] == encoder.dim
    for row, length in enumerate(LENGTHS.tolist()):
        alone, count = encoder(features[row : row + 1, :length], LENGTHS[row : row + 1])
        assert count[0] == lengths[row] == alone.shape[1]
        torch.testing.assert_close(hidden[row, : lengths[row]], alone[0], atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", [Blstm, Gru])
def test_backward_direction_hears_the_end(kind):
    for bidirectional in (True, False):
        encoder = make(kind, bidirectional=bidirectional, subsampling="stack", stride=1)
        one, other = batch(), batch()
        other[1, 4] *= -1  # the last frame of the second utterance
        difference = (encoder(one, LENGTHS)[0] - encoder(other, LENGTHS)[0]).abs().sum(2)
        assert bool(difference[1, 0] > 0) == bidirectional
        assert difference[1, 4] > 0 and difference[[0, 2, 3, 4]].sum() == 0


@pytest.mark.parametrize("options", [{}, {"projection": 4}], ids=["plain", "packed"])
def test_tap_sees_and_replaces_each_layer(options):
    encoder = make(layers=3, **options)
    seen = []

    def look(layer, hidden, lengths):
        seen.append((layer, hidden, lengths))
        return hidden

    hidden, lengths = encoder(batch(), LENGTHS, look)
    untouched, _ = encoder(batch(), LENGTHS)
    assert [layer for layer, *_ in seen] == [0, 1, 2]
    assert all(torch.equal(n, lengths) and h.shape == hidden.shape for _, h, n in seen)
    torch.testing.assert_close(real(hidden, lengths), real(untouched, lengths))
    torch.testing.assert_close(real(seen[-1][1], lengths), real(hidden, lengths))
    for layer in range(3):
        changed, _ = encoder(batch(), LENGTHS, lambda k, h, _, layer=layer: h * 0 if k == layer else h)
        silenced = real(changed, lengths)
        assert (silenced.abs().max() == 0) == (layer == 2)
        assert not torch.allclose(silenced, real(hidden, lengths))


@pytest.mark.parametrize("subsampling, stride", [("stack", 1), ("stack", 3), ("conv", 2), ("conv", 4), ("conv", 8)])
def test_output_lengths_are_the_real_ones(subsampling, stride):
    encoder = make(subsampling=subsampling, stride=stride, layers=1)
    assert encoder.stride == stride
    for frames in range(1, 51):
        hidden, lengths = encoder(torch.zeros(1, frames, DIM), torch.tensor([frames]))
        assert hidden.shape[1] == lengths.item() == encoder.output_lengths(torch.tensor([frames])).item()
        assert lengths.item() == -(-frames // stride) and lengths.dtype == torch.int64


def test_frame_stacking_is_concatenation():
    encoder = make(subsampling="stack", stride=3)
    features = torch.arange(7 * DIM, dtype=torch.float32).reshape(1, 7, DIM)
    stacked, _ = encoder.subsampling(features, torch.tensor([7]))
    expected = torch.cat([features.reshape(-1), torch.zeros(2 * DIM)]).reshape(1, 3, 3 * DIM)
    assert torch.equal(stacked, expected)


def test_dropout_acts_in_training_only():
    encoder = make(dropout=0.5)
    assert torch.equal(encoder(batch(), LENGTHS)[0], encoder(batch(), LENGTHS)[0])
    encoder.train()
    assert not torch.equal(encoder(batch(), LENGTHS)[0], encoder(batch(), LENGTHS)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers=0"),
        ({"width": 0}, "width=0"),
        ({"projection": 8}, r"encoder\.projection=8: must be 0 \(none\) or below width=8"),
        ({"projection": -1}, r"encoder\.projection=-1"),
        ({"subsampling": "pool"}, r"encoder\.subsampling=pool: must be 'stack' or 'conv'"),
        ({"subsampling": "conv", "stride": 3}, r"encoder\.stride=3: .* power of two"),
        ({"subsampling": "conv", "stride": 1}, r"encoder\.stride=1: .* power of two"),
        ({"subsampling": "stack", "stride": 0}, r"encoder\.stride=0: must be 1 or more"),
    ],
)
def test_config_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind, options", [(Blstm, {}), (Blstm, {"projection": 4}), (Gru, {})])
def test_cuda_equals_cpu(kind, options, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    encoder, copy = make(kind, **options), make(kind, **options).cuda()
    hidden, lengths = encoder(batch(), LENGTHS)
    theirs, same = copy(batch().cuda(), LENGTHS)
    assert torch.equal(lengths, same)
    torch.testing.assert_close(real(theirs, lengths).cpu(), real(hidden, lengths), atol=1e-5, rtol=0)
    nn.Module.train(copy)  # cuDNN's backward needs it; dropout is set off
    for module in (encoder, copy):
        module.dropout.p = 0.0
    theirs, _ = copy(batch().cuda(), LENGTHS)
    assert_same([g.cpu() for g in gradients(copy, theirs, lengths)], gradients(encoder, hidden, lengths), 1e-4)
