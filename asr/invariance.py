"""What the contract checks of `asr.testing` consist of: whether a stage's numbers depend on its own utterance alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5
"""Largest absolute or relative difference between an utterance alone and the same in a batch, in float32."""


def check_lengths(stage: Any, make: Callable[[int], Tensor], lengths: list[int]) -> None:
    name = type(stage).__name__
    for length in lengths:
        y, out = stage(make(length), torch.tensor([length]))
        promised = stage.output_lengths(torch.tensor([length]))
        int64 = out.dtype == promised.dtype == torch.int64 and out.shape == (1,) and out.device.type == "cpu"
        require(int64, f"{name}: lengths must be (B,) int64 on the CPU, from forward and output_lengths alike.")
        wrong = f"{name}: an input of length {length} has {int(out)} frames"
        require(torch.equal(out, promised), f"{wrong}; output_lengths says {int(promised)}.")
        require(int(out) >= 1, f"{wrong}; give one at the least.")
        require(y.ndim == 3 and y.shape[1] >= int(out), f"{wrong}, but its output is {tuple(y.shape)}.")
        require(y.shape[2] == stage.dim, f"{name}: the output is {tuple(y.shape)}, with dim={stage.dim}.")


@torch.no_grad()
def check_invariance(stage: Any, x: Tensor, lengths: Tensor, garbage: float) -> None:
    """Each utterance of (B, N, …) alone, against it in batches that differ in all else."""
    name = type(stage).__name__
    alone = []
    for row, length in enumerate(lengths.tolist()):
        y, out = stage(x[row : row + 1, :length].clone(), lengths[row : row + 1])
        alone.append(y[0, : int(out)])
        require(bool(torch.isfinite(alone[-1]).all()), f"{name}: the output has NaN or infinite values.")
    zero, loud, filled = x.clone(), x.clone(), torch.cat([x, x[:, : x.shape[1] // 3]], 1)
    loud[1] *= 1000  # 60 dB
    for row, length in enumerate(lengths.tolist()):
        zero[row, length:], loud[row, length:] = 0, 0
        filled[row, length:] *= garbage
    what = "NaN" if garbage != garbage else "random values"
    cases = (
        ("in a padded batch", zero, (0, 1, 2, 3)),
        ("in a batch in another order", zero, (3, 2, 1, 0)),
        ("beside one that is 60 dB louder", loud, (0, 2, 3)),
        (f"with {what} in the padding", filled, (0, 1, 2, 3)),
    )
    for case, batch, rows in cases:
        order = torch.tensor([*rows, *({*range(len(x))} - {*rows})])
        given = lengths[order]
        y, out = stage(batch[order], given)
        require(torch.equal(given, lengths[order]), f"{name}: alters the lengths that it is given.")
        for place, row in enumerate(rows):
            part, length = y[place, : int(out[place])], int(lengths[row])
            leak = f"{name}: padding or neighbours leak: an utterance of length {length} {case} differs from itself"
            leak += f" alone by {difference(part, alone[row])}, and {TOLERANCE:g} is allowed."
            require(close(part, alone[row]), f"{leak} Mask ahead of every layer that looks at other frames.")


def check_stream(stage: Any, inputs: Sequence[Tensor]) -> None:
    """Whether (1, N, …) in pieces give what they give at once, if the stage streams at all."""
    if not hasattr(stage, "start"):
        return
    for x in inputs:
        expected, _ = stage(x, torch.tensor([x.shape[1]]))
        for size in (1 + x.shape[1] // 40, x.shape[1]):
            state = stage.start()
            with torch.no_grad():
                found = torch.cat([*(stage.step(part, state) for part in x.split(size, 1)), stage.finish(state)], 1)
            same = found.shape == expected.shape and close(found, expected)
            require(same, f"{type(stage).__name__}: a stream in pieces of {size} gives other numbers than the whole.")


def check_training_statistics(encoder: nn.Module, features: Tensor) -> None:
    """In training mode, more padding must change neither outputs nor running statistics such as BatchNorm's."""
    name = type(encoder).__name__
    lengths = torch.tensor([60, 60, 60, 30])
    found = []
    for frames in (60, 120):
        copied = copy.deepcopy(encoder).train()
        for module in copied.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0  # type: ignore[assignment]
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        torch.manual_seed(0)
        with torch.no_grad():
            y, out = copied(features[:, :frames] * (torch.arange(frames) < lengths[:, None])[..., None], lengths)
        found.append([y[k, : int(n)] for k, n in enumerate(out)] + [b.float() for b in copied.buffers()])
    for less, more in zip(*found, strict=True):
        leak = f"{name}: in training, outputs or running statistics differ by {difference(less, more)}"
        require(close(less, more), f"{leak} when a batch is padded further. Mask BatchNorm, or use LayerNorm.")


def check_gradients(encoder: nn.Module, features: Tensor, lengths: Tensor) -> None:
    name = type(encoder).__name__
    encoder.train()
    encoder.zero_grad()
    torch.manual_seed(0)
    hidden, out = encoder(features, lengths)
    real = (torch.arange(hidden.shape[1])[None, :] < out[:, None])[..., None]
    (hidden.masked_fill(~real, 0) * torch.randn_like(hidden)).sum().backward()
    for key, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            gradient = torch.zeros(1) if parameter.grad is None else parameter.grad
            require(bool(gradient.any()), f"{name}: no gradient reaches the parameter '{key}'.")
            require(bool(gradient.isfinite().all()), f"{name}: the gradient of '{key}' has NaN or infinite values.")


@torch.no_grad()
def check_tap(encoder: Any, features: Tensor, lengths: Tensor) -> None:
    name = type(encoder).__name__
    seen: list[int] = []

    def look(layer: int, hidden: Tensor, given: Tensor) -> Tensor:
        fits = hidden.ndim == 3 and hidden.shape[1] >= int(given.max()) and given.dtype == torch.int64
        require(fits, f"{name}: tap gets (B, T, H) and (B,) int64 lengths.")
        seen.append(layer)
        return hidden

    plain, out = encoder(features, lengths)
    tapped, _ = encoder(features, lengths, look)
    require(len(seen) > 0, f"{name}: never calls tap(layer, hidden, lengths); call it after each layer.")
    require(seen == list(range(len(seen))), f"{name}: tap's layers must count 0, 1, …, found {seen}.")
    altered, _ = encoder(features, lengths, lambda layer, hidden, given: torch.zeros_like(hidden))
    for row, length in enumerate(out.tolist()):
        require(close(plain[row, :length], tapped[row, :length]), f"{name}: a tap that alters nothing has an effect.")
    changed = not close(plain[1, : int(out[1])], altered[1, : int(out[1])])
    require(changed, f"{name}: goes on without what tap returns; it must replace the layer's output.")


def require(condition: bool, message: str) -> None:
    if not condition:  # not `assert`, which python -O leaves out
        raise AssertionError(message)


def require_attributes(component: Any, **kinds: Any) -> None:
    name = type(component).__name__
    for attribute, kind in kinds.items():
        require(hasattr(component, attribute), f"{name}: has no attribute '{attribute}'.")
        value: Any = getattr(component, attribute)
        positive = type(value) is kind and value > 0
        require(positive, f"{name}: {attribute}={value!r} must be a positive {kind.__name__}.")
    require(callable(getattr(component, "output_lengths", None)), f"{name}: has no method 'output_lengths'.")


def close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE)


def difference(one: Tensor, other: Tensor) -> str:
    return f"{(one - other).abs().max():.2g}" if one.shape == other.shape else f"shape {tuple(one.shape)}"
