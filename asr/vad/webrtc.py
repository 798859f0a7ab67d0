"""Voice activity by the detector of WebRTC."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from asr.data.audio import resample
from asr.errors import ConfigError

RATES = (8000, 16000, 32000, 48000)


class WebRtc:
    """The detector of WebRTC, Gaussian mixtures over the energies of six bands, in frames of 10 ms.

    Needs the package webrtcvad-wheels. Called as `Energy` is.

    Args:
        aggressiveness: from 0 to 3; more takes less for speech.
    """

    frame_ms = 10

    def __init__(self, aggressiveness: int = 2):
        if aggressiveness not in range(4):
            raise ConfigError(f"vad.aggressiveness={aggressiveness}: must be 0, 1, 2 or 3.")
        try:
            import webrtcvad
        except ImportError:
            raise ConfigError("vad=webrtc needs the package webrtcvad-wheels: pip install webrtcvad-wheels") from None
        self._detector, self.aggressiveness = webrtcvad.Vad, aggressiveness

    def __call__(self, blocks: Iterable[np.ndarray], sample_rate: int) -> Iterator[np.ndarray]:
        detector = self._detector(self.aggressiveness)
        rate = sample_rate if sample_rate in RATES else 16000
        hop = rate // 100
        for samples in blocks:
            samples = samples if rate == sample_rate else resample(samples, sample_rate, rate)
            frames = np.pad(samples, (0, -len(samples) % hop)).reshape(-1, hop)
            pcm = (np.clip(frames, -1, 1) * 32767).astype("<i2")
            yield np.array([detector.is_speech(frame.tobytes(), rate) for frame in pcm], np.bool_)
