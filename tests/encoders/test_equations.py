"""torch.nn.LSTM and GRU against a step-by-step implementation of the equations in the docstrings of Blstm and Gru."""

import pytest
import torch
from torch import nn

INPUT, WIDTH, FRAMES = 5, 4, 9


def lstm_step(x, h, c, w):
    """One frame of the docstring of Blstm; torch keeps the gates in the order i, f, g, o, with two biases."""
    W, U, b = w["weight_ih"].chunk(4), w["weight_hh"].chunk(4), (w["bias_ih"] + w["bias_hh"]).chunk(4)
    i = torch.sigmoid(x @ W[0].T + h @ U[0].T + b[0])
    f = torch.sigmoid(x @ W[1].T + h @ U[1].T + b[1])
    g = torch.tanh(x @ W[2].T + h @ U[2].T + b[2])
    o = torch.sigmoid(x @ W[3].T + h @ U[3].T + b[3])
    c = f * c + i * g
    h = o * torch.tanh(c)
    return (h @ w["weight_hr"].T if "weight_hr" in w else h), c


def gru_step(x, h, c, w):
    """One frame of the docstring of Gru; torch keeps the order r, z, n."""
    W, U, b, bh = (w[name].chunk(3) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    r = torch.sigmoid(x @ W[0].T + h @ U[0].T + b[0] + bh[0])
    z = torch.sigmoid(x @ W[1].T + h @ U[1].T + b[1] + bh[1])
    n = torch.tanh(x @ W[2].T + b[2] + r * (h @ U[2].T + bh[2]))
    return (1 - z) * n + z * h, c


def by_steps(layer, x, step, suffix):
    """(B, T, D) → (B, T, H) in one direction."""
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    names = {kind: f"{kind}_l0{suffix}" for kind in kinds}
    weights = {kind: getattr(layer, name) for kind, name in names.items() if hasattr(layer, name)}
    h = x.new_zeros(x.shape[0], getattr(layer, "proj_size", 0) or WIDTH)
    c = x.new_zeros(x.shape[0], WIDTH)
    outputs = []
    for frame in x.unbind(1):
        h, c = step(frame, h, c, weights)
        outputs.append(h)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize(
    ("kind", "step", "options"),
    [
        (nn.LSTM, lstm_step, {}),
        (nn.LSTM, lstm_step, {"bidirectional": True}),
        (nn.LSTM, lstm_step, {"bidirectional": True, "proj_size": 3}),
        (nn.GRU, gru_step, {}),
        (nn.GRU, gru_step, {"bidirectional": True}),
    ],
)
def test_equations(kind, step, options):
    torch.manual_seed(0)
    layer = kind(INPUT, WIDTH, batch_first=True, **options).double()
    x = torch.randn(2, FRAMES, INPUT, dtype=torch.float64, requires_grad=True)
    expected, _ = layer(x)
    outputs = [by_steps(layer, x, step, "")]
    if layer.bidirectional:
        outputs.append(by_steps(layer, x.flip(1), step, "_reverse").flip(1))
    ours = torch.cat(outputs, -1)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)
    weights = torch.randn_like(expected)
    targets = [x, *layer.parameters()]
    gradients = [torch.autograd.grad((y * weights).sum(), targets) for y in (ours, expected)]
    for one, other in zip(*gradients, strict=True):
        assert other.abs().max() > 1e-6
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
