"""The row convolution against a loop, and streams against whole utterances."""

import pytest
import torch

from asr.encoders import Lstm

DIM = 6
OPTIONS = [
    {},
    {"subsampling": "stack", "stride": 3, "norm": "batch"},
    {"lookahead": 0, "projection": 3, "stride": 2},
    {"stride": 8, "residual": "highway", "norm": "none"},
    {"lookahead": 4, "residual": "add", "dropout_kind": "locked"},
]


def make(**options):
    torch.manual_seed(0)
    encoder = Lstm(DIM, **{"layers": 3, "width": 8, "lookahead": 2, "channels": 3, **options}).double().eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return encoder


def utterance(frames):
    return torch.randn(1, frames, DIM, generator=torch.Generator().manual_seed(frames)).double()


def test_row_convolution_is_a_weighted_sum_of_the_frames_ahead():
    encoder = make(lookahead=3)
    features = torch.cat([utterance(50)[:, :20], utterance(20)])
    lengths = torch.tensor([20, 9])
    seen = {}
    found, lengths = encoder(features, lengths, lambda k, hidden, _: seen.setdefault(k, hidden))
    weights = encoder.row.weight[:, 0]  # (dim, 4)
    for row, length in enumerate(lengths.tolist()):
        for t in range(length):
            expected = torch.zeros(encoder.dim, dtype=torch.float64)
            for j in range(4):
                if t + j < length:
                    expected += weights[:, j] * seen[2][row, t + j]
            torch.testing.assert_close(found[row, t], expected)


@pytest.mark.parametrize("size", [1, 2, 5, 13, 100])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())) or "default")
def test_a_stream_gives_what_the_whole_utterance_gives(options, size):
    encoder = make(**options)
    for frames in (1, 4, 43, 64):
        features = utterance(frames)
        expected, lengths = encoder(features, torch.tensor([frames]))
        state = encoder.start()
        pieces, heard = [], 0
        for piece in features.split(size, 1):
            pieces.append(encoder.step(piece, state))
            heard += piece.shape[1]
            # frame t is known once (t + lookahead + 1) · stride frames were heard
            assert sum(p.shape[1] for p in pieces) == max(0, heard // encoder.stride - encoder.lookahead)
        found = torch.cat([*pieces, encoder.finish(state)], 1)
        assert found.shape[1] == lengths.item()
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_streams_do_not_meet():
    encoder = make()
    one, other = utterance(30), utterance(41)
    states = [encoder.start(), encoder.start()]
    found = [[], []]
    for t in range(41):
        for features, state, pieces in zip((one, other), states, found, strict=True):
            if t < features.shape[1]:
                pieces.append(encoder.step(features[:, t : t + 1], state))
    for features, state, pieces in zip((one, other), states, found, strict=True):
        hidden = torch.cat([*pieces, encoder.finish(state)], 1)
        torch.testing.assert_close(hidden, encoder(features, torch.tensor([features.shape[1]]))[0])


@pytest.mark.parametrize("lookahead", [0, 2])
def test_hears_so_far_ahead_and_no_farther(lookahead):
    encoder = make(lookahead=lookahead)
    features = utterance(40).requires_grad_()
    hidden, _ = encoder(features, torch.tensor([40]))
    for t in range(10):
        gradient = torch.autograd.grad(hidden[0, t].square().sum(), features, retain_graph=True)[0]
        heard = gradient[0].abs().sum(1).nonzero().max().item() + 1
        assert heard == min(40, (t + lookahead + 1) * encoder.stride)
