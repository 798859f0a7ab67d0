"""Dropout: the share that falls away, the scale of what stays, the gradient, and the draws."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from asr.encoders.dropout import make_dropout
from tests.encoders.test_stack import CUDA


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_the_share_and_the_scale(share: float, device: str) -> None:
    """A share of zeros within six standard deviations, at each of the places that 64 random bits decide on."""
    torch.manual_seed(0)
    x = torch.ones(40_000, 4, device=device)
    y = make_dropout(share)(x)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - share)), rtol=2e-4, atol=0)
    bound = 6 * (share * (1 - share) / len(x)) ** 0.5
    assert ((y == 0).float().mean(0) - share).abs().max() < bound
    both = ((y == 0).float().mT @ (y == 0).float()) / len(x)  # neighbours fall away independently of each other
    assert (both - share**2)[~torch.eye(4, dtype=torch.bool)].abs().max() < bound


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (3, 5, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_goes_where_the_output_comes_from(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.ones(shape, dtype=dtype).requires_grad_()
    y = make_dropout(0.5)(x)
    y.sum().backward()
    assert y.shape == x.shape and y.dtype == dtype
    torch.testing.assert_close(x.grad, y.detach())  # both are the mask


def test_draws_follow_the_seed_and_differ() -> None:
    dropout, x = make_dropout(0.5), torch.ones(3, 50).T  # a view
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first) and not torch.equal(first, second)


@pytest.mark.parametrize(("share", "training"), [(0.0, True), (0.5, False)])
def test_nothing_is_drawn_where_nothing_falls_away(share: float, training: bool) -> None:
    state = torch.random.get_rng_state()
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    dropout: nn.Module = make_dropout(share).train(training)
    assert torch.equal(dropout(x), x) and torch.equal(torch.random.get_rng_state(), state)
