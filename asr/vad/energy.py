"""Voice activity by energy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from asr.errors import ConfigError
from asr.vad.frames import frame_starts

STEP, REACH = 5.0, 5.0
"""Seconds that have one threshold, and seconds before and after them that it is measured on besides."""
PART_MS, AROUND_MS = 5, 50
"""Milliseconds of which the variance is taken, and over which variances are averaged."""
SILENCE_DB = -100.0
"""What is softer is digital silence: it says nothing of how loud the noise is."""


class Energy:
    """Speech is what is louder than the noise, in frames of 10 ms.

    With the variances v of the samples in parts of 5 ms, which offset and hum do not change, and for frame t

        e_t = mean of v over the 50 ms around t,    E_t = 10 log10 e_t    (dB)
        threshold = floor + max(least_db, min(most_db, share · (peak - floor)))

    frames with E_t above the threshold are speech; `floor` is the 10th percentile and `peak` the 95th of E over 5 s and
    the 5 s before and after them, as far as these are in the same block of audio or the one before. Digital silence
    (below -100 dB) does not count. In steady noise nothing is speech; where speech or music is too dense to leave
    pauses, nearly everything is.

    Args:
        share: of the way from the noise to the loudest speech. Less takes more for speech.
        least_db, most_db: by how much, at the least and at the most, speech has to be louder than the noise.

    Called with the blocks (N,) float32 of a recording, in their order, and their sample rate, it yields for each
    block which of its frames of `frame_ms` are speech: (T,) bool, the last one incomplete.
    """

    frame_ms = 10

    def __init__(self, share: float = 0.4, least_db: float = 4.0, most_db: float = 15.0):
        if not 0 <= share < 1 or not 0 <= least_db <= most_db:
            raise ConfigError(
                f"vad: share={share} must be from 0 to below 1, least_db={least_db} 0 or more, and most_db={most_db} "
                "no less than that."
            )
        self.share, self.least_db, self.most_db = share, least_db, most_db

    def __call__(self, blocks: Iterable[np.ndarray], sample_rate: int) -> Iterator[np.ndarray]:
        step, reach = (round(1000 * seconds / self.frame_ms) for seconds in (STEP, REACH))
        before = np.zeros(0)
        for samples in blocks:
            levels = _levels(samples, sample_rate, self.frame_ms)
            known = np.concatenate([before, levels])
            speech = np.empty(len(levels), np.bool_)
            for first in range(0, len(levels), step):
                now = slice(first, first + step)
                around = known[max(0, len(before) + first - reach) : len(before) + first + step + reach]
                speech[now] = levels[now] > self._threshold(around[around > SILENCE_DB])
            yield speech
            before = levels[-reach:]

    def _threshold(self, levels: np.ndarray) -> float:
        floor, peak = np.percentile(levels, (10, 95)) if len(levels) else (0.0, 0.0)
        return floor + max(self.least_db, min(self.most_db, self.share * (peak - floor)))


def _levels(samples: np.ndarray, sample_rate: int, frame_ms: int) -> np.ndarray:
    """(N,) → the energies (T,) of its frames in dB."""
    starts = frame_starts(len(samples), sample_rate, PART_MS)
    counts = np.diff(starts, append=len(samples))
    means, squares = (np.add.reduceat(x, starts, dtype=np.float64) / counts for x in (samples, np.square(samples)))
    variances = np.maximum(squares - means**2, 1e-12)
    per_frame = frame_ms // PART_MS
    around = AROUND_MS // PART_MS
    after = (around + per_frame) // 2  # parts from a frame's start to the end of what is around it
    frames = -(-len(variances) // per_frame)
    energies = np.convolve(variances, np.full(around, 1 / around))[after - 1 :: per_frame][:frames]
    return 10 * np.log10(energies)
