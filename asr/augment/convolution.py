"""Convolution of batches with long filters."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad
from torchaudio.functional import fftconvolve


def convolve(x: Tensor, filters: Tensor) -> Tensor:
    """Waveforms (B, N), filters (B or 1, M) → (B, N + M - 1 or more): by FFT, of a size without large prime factors."""
    return fftconvolve(x, pad(filters, (0, -(x.shape[1] + filters.shape[1] - 1) % 2048)))
