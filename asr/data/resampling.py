"""Resampling by a windowed sinc, in NumPy."""

from __future__ import annotations

import math

import numpy as np

ZEROS, ROLLOFF = 6, 0.99
"""Zero crossings of the sinc on either side, and its cutoff as a share of the lower Nyquist frequency."""
BLOCK = 256
"""Samples, about, that are multiplied with the filters at once."""


class Resampler:
    """Band-limited interpolation (Smith, "Digital audio resampling"), with torchaudio's Hann-windowed sinc.

    Equal to `torchaudio.transforms.Resample(rate, new_rate)`: `period` samples become `new_period`, each of which is
    the product of a filter with the samples from `width` before the period to `width` after it.

    Args:
        rate, new_rate: Hz.
    """

    def __init__(self, rate: int, new_rate: int):
        divisor = math.gcd(rate, new_rate)
        self.period, self.new_period = rate // divisor, new_rate // divisor
        cutoff = ROLLOFF * min(self.period, self.new_period)
        self.width = math.ceil(ZEROS * self.period / cutoff)
        place = np.arange(-self.width, self.width + self.period)[:, None] / self.period
        zeros = np.clip(cutoff * (place - np.arange(self.new_period) / self.new_period), -ZEROS, ZEROS)
        filters = np.sinc(zeros) * np.cos(np.pi * zeros / ZEROS / 2) ** 2 * cutoff / self.period
        # several periods at once: short ones would make a matrix of many copies of the same samples
        self._periods = max(1, BLOCK // self.period)
        self._filters = np.zeros((len(filters) + (self._periods - 1) * self.period, self._periods * self.new_period))
        for k in range(self._periods):
            rows = slice(k * self.period, k * self.period + len(filters))
            self._filters[rows, k * self.new_period : (k + 1) * self.new_period] = filters
        self._filters = self._filters.astype(np.float32)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """(N,) float32 → (⌈N · new_rate / rate⌉,) float32."""
        count = -(-len(samples) * self.new_period // self.period)
        step, (size, new_step) = self._periods * self.period, self._filters.shape
        steps = max(1, -(-count // new_step))
        padded = np.zeros((steps - 1) * step + size, np.float32)
        padded[self.width : self.width + len(samples)] = samples[: len(padded) - self.width]
        windows = np.lib.stride_tricks.sliding_window_view(padded, size)[::step]
        found = [np.ascontiguousarray(windows[k : k + 4096]) @ self._filters for k in range(0, steps, 4096)]
        return np.concatenate(found).reshape(-1)[:count]
