"""The acoustic model: waveforms to label distributions. The unit that is trained, saved and exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from asr.errors import ConfigError
from asr.featurizers.normalization import GlobalNorm, UtteranceNorm, frame_mask

NORMALIZATIONS = {"global": GlobalNorm, "utterance": UtteranceNorm}


class AcousticModel(nn.Module):
    """Featurizer, normalisation, encoder and a linear head with log-softmax.

    Args:
        featurizer: waveforms → features.
        encoder: features → hidden vectors.
        labels: number of labels, blank (id 0) among them.
        normalization: "global" (statistics of the training set) or "utterance" (cannot stream).
    """

    featurizer: Any
    encoder: Any

    def __init__(self, featurizer: Any, encoder: Any, labels: int, normalization: str = "global"):
        super().__init__()
        if normalization not in NORMALIZATIONS:
            raise ConfigError(f"normalization={normalization}: must be one of {', '.join(NORMALIZATIONS)}.")
        self.featurizer = featurizer
        self.normalization = NORMALIZATIONS[normalization](featurizer.dim)
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, labels)

    @property
    def sample_rate(self) -> int:
        return self.featurizer.sample_rate

    @property
    def frame_seconds(self) -> float:
        """Seconds from one emission frame to the next."""
        return self.featurizer.frame_shift * self.encoder.stride

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Samples → emission frames."""
        return self.encoder.output_lengths(self.featurizer.output_lengths(lengths))

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N), (B,) → normalised features (B, T, D), zero in the padding, and lengths (B,)."""
        mask = frame_mask(lengths, waveforms.shape[1], waveforms.device)
        with torch.autocast(waveforms.device.type, enabled=False):  # energies span more than half precision resolves
            features, lengths = self.featurizer(waveforms.masked_fill(~mask, 0).float(), lengths)
            features = self.normalization(features, lengths)
        mask = frame_mask(lengths, features.shape[1], features.device)
        return features.masked_fill(~mask[..., None], 0), lengths

    def encode(self, features: Tensor, lengths: Tensor, tap: Callable | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, D), (B,) → log-probabilities (B, T', V) float32 and lengths (B,)."""
        hidden, lengths = self.encoder(features, lengths, tap)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float()).log_softmax(-1), lengths

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, N), lengths (B,) samples on the CPU → log-probabilities (B, T', V), lengths (B,) frames."""
        return self.encode(*self.features(waveforms, lengths))
