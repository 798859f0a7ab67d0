"""Voice activity by the Silero network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from asr.data.audio import resample
from asr.errors import ConfigError

RATE = 16000


class Silero:
    """Silero VAD, a small recurrent network trained on many languages, in frames of 32 ms.

    Needs the packages silero-vad, whose wheel holds the network, and onnxruntime. Called as `Energy` is.

    Args:
        threshold: the probability from which on a frame is speech.
    """

    frame_ms = 32

    def __init__(self, threshold: float = 0.5):
        if not 0 < threshold < 1:
            raise ConfigError(f"vad.threshold={threshold}: must be between 0 and 1.")
        self.threshold = threshold
        _network()

    def __call__(self, blocks: Iterable[np.ndarray], sample_rate: int) -> Iterator[np.ndarray]:
        for samples in blocks:
            samples = samples if sample_rate == RATE else resample(samples, sample_rate, RATE)
            yield _network().audio_forward(samples) >= self.threshold


@lru_cache
def _network() -> Any:
    try:
        import onnxruntime  # noqa: F401
        import silero_vad
    except ImportError:
        raise ConfigError(
            "vad=silero needs the packages silero-vad and onnxruntime: pip install silero-vad onnxruntime"
        ) from None
    path = Path(silero_vad.__file__).parent / "data" / "silero_vad_16k_sequence.onnx"
    return silero_vad.SileroVADSequence(path)
