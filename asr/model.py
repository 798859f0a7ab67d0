"""The acoustic model: waveforms to label distributions. The unit that is trained, saved and exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asr.errors import ConfigError
from asr.featurizers.normalization import GlobalNorm, UtteranceNorm, frame_mask

NORMALIZATIONS = {"global": GlobalNorm, "utterance": UtteranceNorm}


@dataclass
class ModelState:
    """Where a model stopped in a stream; belongs to the stages that made it."""

    featurizer: Any
    encoder: Any


class AcousticModel(nn.Module):
    """Featurizer, normalisation, encoder and a linear head with log-softmax.

    Args:
        featurizer: waveforms → features.
        encoder: features → hidden vectors.
        labels: number of labels, blank (id 0) among them.
        normalization: "global" (statistics of the training set) or "utterance" (cannot stream).
        self_conditioning: the encoder's layers, counted from 1, whose prediction p = softmax(head(h)) goes into the
            next layer with their hidden vectors h, as h + W p + b, with W and b the same for all of them (Nozaki &
            Komatsu, arXiv 2104.02724).

    Raises:
        ConfigError: there is no such normalisation, or no such layer.
    """

    featurizer: Any
    encoder: Any

    def __init__(
        self,
        featurizer: Any,
        encoder: Any,
        labels: int,
        normalization: str = "global",
        self_conditioning: Sequence[int] = (),
    ):
        super().__init__()
        if normalization not in NORMALIZATIONS:
            raise ConfigError(f"normalization={normalization}: must be one of {', '.join(NORMALIZATIONS)}.")
        self.featurizer = featurizer
        self.normalization = NORMALIZATIONS[normalization](featurizer.dim)
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, labels)
        self.self_conditioning = self.inner_layers(self_conditioning, "self_conditioning")
        if self.self_conditioning:
            self.conditioning = nn.Linear(labels, encoder.dim)

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
        hidden, lengths = self.encoder(features, lengths, self._conditioned(tap))
        return self.log_probs(hidden), lengths

    def _conditioned(self, tap: Callable | None) -> Callable | None:
        """A tap that conditions layers on their predictions, if any is, after calling `tap`."""
        if not self.self_conditioning:
            return tap

        def condition(layer: int, hidden: Tensor, frames: Tensor) -> Tensor:
            hidden = tap(layer, hidden, frames) if tap else hidden
            if layer + 1 in self.self_conditioning:
                hidden = hidden + self.conditioning(self.log_probs(hidden).exp())
            return hidden

        return condition

    def log_probs(self, hidden: Tensor) -> Tensor:
        """(B, T, H) of the encoder's last layer, or of one as wide → (B, T, V) float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float()).log_softmax(-1)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, N), lengths (B,) samples on the CPU → log-probabilities (B, T', V), lengths (B,) frames."""
        return self.encode(*self.features(waveforms, lengths))

    def start(self) -> ModelState:
        """The state of a stream of which nothing was heard.

        Raises:
            ConfigError: a stage needs the whole utterance.
        """
        encoder, featurizer = type(self.encoder).__name__, type(self.featurizer).__name__
        if not hasattr(self.encoder, "start"):
            raise ConfigError(f"The encoder {encoder} needs the whole utterance: it cannot hear it live; lstm can.")
        if not hasattr(self.featurizer, "start"):
            raise ConfigError(f"The featurizer {featurizer} has no step(): it needs the whole utterance.")
        if isinstance(self.normalization, UtteranceNorm):
            raise ConfigError("normalization=utterance takes the mean of the whole utterance: it cannot hear it live.")
        return ModelState(self.featurizer.start(), self.encoder.start())

    def step(self, waveforms: Tensor, state: ModelState) -> Tensor:
        """The next waveform (1, N) of a stream → log-probabilities (1, T', V), all that it completes.

        In evaluation mode they are those of `forward`, however the waveform is cut; the state is changed.
        """
        return self.log_probs(self._step(self.featurizer.step(waveforms, state.featurizer), state))

    def finish(self, state: ModelState) -> Tensor:
        """End the stream: its last log-probabilities (1, T', V)."""
        hidden = self._step(self.featurizer.finish(state.featurizer), state)
        return self.log_probs(torch.cat([hidden, self.encoder.finish(state.encoder, *self._taps())], 1))

    def _step(self, features: Tensor, state: ModelState) -> Tensor:
        features = self.normalization(features, torch.tensor([features.shape[1]]))
        return self.encoder.step(features, state.encoder, *self._taps())

    def _taps(self) -> tuple:
        return (self._conditioned(None),) if self.self_conditioning else ()

    def inner_layers(self, layers: Sequence[int], key: str) -> set[int]:
        """The numbers, counted from 1, of layers of the encoder that the head can read before the last.

        Raises:
            ConfigError: it has no such layers, or they are not as wide as the last.
        """
        if isinstance(layers, list | tuple) and not layers:
            return set()
        widths = []

        def look(layer: int, hidden: Tensor, lengths: Tensor) -> Tensor:
            widths.append(hidden.shape[-1])
            return hidden

        training = self.encoder.training
        with torch.no_grad():
            self.encoder.eval()(torch.zeros(1, 1, self.featurizer.dim), torch.tensor([1]), look)
        self.encoder.train(training)
        possible = [k for k, width in enumerate(widths[:-1], 1) if width == self.encoder.dim]
        if not isinstance(layers, list | tuple) or not set(layers) <= set(possible):
            there = f"must be from {possible}, the layers" if possible else "the encoder has no layers"
            raise ConfigError(f"{key}={layers}: {there} below the last and as wide.")
        return set(layers)
