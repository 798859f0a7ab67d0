"""The frames of a block of audio."""

from __future__ import annotations

import numpy as np


def frame_starts(samples: int, sample_rate: int, frame_ms: int) -> np.ndarray:
    """Where the frames of so many samples begin (T,), also where a frame is not a whole number of samples."""
    count = -(-samples * 1000 // (sample_rate * frame_ms))
    return np.arange(count) * (sample_rate * frame_ms) // 1000
