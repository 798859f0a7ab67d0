"""Random seeds as a function of where one stands, so that nothing depends on what was drawn before."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def utterance_seeds(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """(B,) int64 seeds for utterances (B,) of an epoch: three rounds of splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        state = _mix(_mix(np.uint64(seed)) + np.uint64(epoch)) + indices.numpy().astype(np.uint64)
        return torch.from_numpy((_mix(state) >> np.uint64(1)).astype(np.int64))


def other_seeds(seeds: Tensor, view: int = 0, twin: int = 0) -> Tensor:
    """(B,) seeds of the same utterances for another view and for the twin-th further augmentation of one kind."""
    if not view and not twin:
        return seeds
    with np.errstate(over="ignore"):
        state = _mix(seeds.numpy().astype(np.uint64)) + np.uint64(view) + (np.uint64(twin) << np.uint64(32))
        return torch.from_numpy((_mix(state) >> np.uint64(1)).astype(np.int64))


def generators(seeds: Tensor, purpose: int) -> list[np.random.Generator]:
    """One generator for each utterance; `purpose` keeps augmentations from sharing their draws."""
    return [np.random.default_rng((int(seed), purpose)) for seed in seeds]


def _mix(x):
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
