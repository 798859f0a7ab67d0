"""Short-time spectra: linear, mel and cepstral.

Frames are never centred: frame t covers samples t·hop … t·hop + n_fft, so that no frame of an utterance reads what
lies past its end, and a padded batch gives what each utterance alone gives, and a stream what the whole gives. Filters
and transforms are torchaudio's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn

from asr.errors import ConfigError


@dataclass
class SpectrogramState:
    """Where a featurizer stopped in a stream; `step` changes it."""

    kept: Tensor | None = None
    """(1, N) samples of frames that are not complete."""
    frames: int = 0
    """That it has given."""


class Spectrogram(nn.Module):
    """Logarithm of the magnitude spectrum (Amodei et al., Deep Speech 2, arXiv 1512.02595).

    Args:
        sample_rate: Hz of the waveforms.
        window_ms: length of the Hann window, milliseconds.
        hop_ms: from one frame to the next, milliseconds.
        floor: added before the logarithm.

    Shapes: waveforms (B, N) float32, lengths (B,) int64 samples → features (B, T, dim) float32, lengths (B,) frames.
    """

    power = 1.0
    window: Tensor

    def __init__(self, sample_rate: int = 16000, window_ms: float = 20.0, hop_ms: float = 10.0, floor: float = 1e-6):
        super().__init__()
        self.sample_rate = sample_rate
        self.window_length, self.hop = round(sample_rate * window_ms / 1000), round(sample_rate * hop_ms / 1000)
        if not 0 < self.hop <= self.window_length:
            raise ConfigError(f"featurizer: hop_ms={hop_ms} must be above 0 and at most window_ms={window_ms}.")
        if not 0 < floor < math.inf:
            raise ConfigError(f"featurizer.floor={floor}: must be above 0, or silence has no logarithm.")
        self.n_fft = 1 << (self.window_length - 1).bit_length()
        self.floor = floor
        self.dim = self.n_fft // 2 + 1
        self.frame_shift = self.hop / sample_rate
        self.register_buffer("window", torch.hann_window(self.window_length), persistent=False)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Frames of utterances of so many samples; one at the least."""
        return ((lengths - self.n_fft) // self.hop + 1).clamp(min=1)

    def start(self) -> SpectrogramState:
        """The state of a stream of which nothing was heard."""
        return SpectrogramState()

    def step(self, waveforms: Tensor, state: SpectrogramState) -> Tensor:
        """The next waveform (1, N) of a stream → features (1, T, dim), all that it completes; the state is changed."""
        kept = waveforms if state.kept is None else torch.cat([state.kept, waveforms], 1)
        frames = max(0, (kept.shape[1] - self.n_fft) // self.hop + 1)
        state.frames, state.kept = state.frames + frames, kept[:, frames * self.hop :]
        if not frames:
            return waveforms.new_zeros(1, 0, self.dim)
        return self(kept[:, : (frames - 1) * self.hop + self.n_fft], torch.tensor([kept.shape[1]]))[0]

    def finish(self, state: SpectrogramState) -> Tensor:
        """End the stream: one more frame (1, 1, dim) if it had none at all, else none."""
        if state.frames or state.kept is None:
            return self.window.new_zeros(1, 0, self.dim)
        return self(state.kept, torch.tensor([state.kept.shape[1]]))[0]

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return (self.spectrum(waveforms) + self.floor).log(), self.output_lengths(lengths)

    def spectrum(self, waveforms: Tensor) -> Tensor:
        """(B, N) → (B, T, n_fft / 2 + 1): the magnitude to the power of `power`."""
        if torch.onnx.is_in_onnx_export():  # which has no complex numbers, and traces no condition
            real, imaginary = self._dft(waveforms)
        else:
            missing = self.n_fft - waveforms.shape[-1]
            if missing > 0:
                waveforms = nn.functional.pad(waveforms, (0, missing))
            spectrum = torch.stft(
                waveforms, self.n_fft, self.hop, self.window_length, self.window, center=False, return_complex=True
            )
            real, imaginary = spectrum.real, spectrum.imag
        power = real.square() + imaginary.square()
        return (power if self.power == 2 else power.sqrt()).transpose(1, 2)

    def _dft(self, waveforms: Tensor) -> tuple[Tensor, ...]:
        """(B, N) → real and imaginary parts (B, n_fft / 2 + 1, T), by a convolution with windowed cosines and sines."""
        first = (self.n_fft - self.window_length) // 2  # of a frame's samples that the window does not make zero
        last = first + self.window_length
        angles = 2 * np.pi / self.n_fft * np.outer(np.arange(self.n_fft // 2 + 1), np.arange(first, last))
        kernel = torch.from_numpy(np.concatenate([np.cos(angles), -np.sin(angles)]) * self.window.numpy()).float()
        missing = (self.n_fft - torch._shape_as_tensor(waveforms)[1]).clamp(min=0)
        padded = nn.functional.pad(waveforms, (0, missing))[:, None, first : last - self.n_fft or None]  # type: ignore[arg-type]
        return nn.functional.conv1d(padded, kernel[:, None], stride=self.hop).chunk(2, 1)


class LogMel(Spectrogram):
    """Logarithm of the energy in mel bands: the common features of speech recognition.

    Equal to `torchaudio.transforms.MelSpectrogram(center=False)` plus `floor`, logarithm taken.

    Args:
        sample_rate, window_ms, hop_ms, floor: as in `Spectrogram`.
        bands: number of triangular filters, the feature dimension.
        low_hz, high_hz: where the first filter begins and the last ends; `None`: half the sample rate.
    """

    power = 2.0
    filters: Tensor

    def __init__(
        self,
        sample_rate: int = 16000,
        bands: int = 80,
        window_ms: float = 25.0,
        hop_ms: float = 10.0,
        low_hz: float = 20.0,
        high_hz: float | None = None,
        floor: float = 1e-6,
    ):
        super().__init__(sample_rate, window_ms, hop_ms, floor)
        high_hz = sample_rate / 2 if high_hz is None else high_hz
        if not 0 <= low_hz < high_hz <= sample_rate / 2:
            raise ConfigError(
                f"featurizer: low_hz={low_hz} and high_hz={high_hz} must ascend and stay within {sample_rate / 2} Hz, "
                f"half of sample_rate={sample_rate}."
            )
        if bands < 1:
            raise ConfigError(f"featurizer.bands={bands}: must be 1 or more.")
        filters = torchaudio.functional.melscale_fbanks(self.n_fft // 2 + 1, low_hz, high_hz, bands, sample_rate)
        self.register_buffer("filters", filters, persistent=False)
        self.dim = bands

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        mel = self.spectrum(waveforms) @ self.filters
        return (mel + self.floor).log(), self.output_lengths(lengths)


class Mfcc(LogMel):
    """Mel-frequency cepstral coefficients: the DCT of the log mel energies (Davis & Mermelstein 1980).

    Unlike `torchaudio.transforms.MFCC` there is no `top_db`: it clips to the loudest utterance of the batch.

    Args:
        coefficients: how many, the feature dimension.
        sample_rate, bands, window_ms, hop_ms, low_hz, high_hz, floor: as in `LogMel`.
    """

    dct: Tensor

    def __init__(
        self,
        sample_rate: int = 16000,
        coefficients: int = 40,
        bands: int = 80,
        window_ms: float = 25.0,
        hop_ms: float = 10.0,
        low_hz: float = 20.0,
        high_hz: float | None = None,
        floor: float = 1e-6,
    ):
        super().__init__(sample_rate, bands, window_ms, hop_ms, low_hz, high_hz, floor)
        if not 1 <= coefficients <= bands:
            raise ConfigError(f"featurizer: coefficients={coefficients} must be 1 or more, at most bands={bands}.")
        self.register_buffer("dct", torchaudio.functional.create_dct(coefficients, bands, "ortho"), persistent=False)
        self.dim = coefficients

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        features, lengths = super().forward(waveforms, lengths)
        return features @ self.dct, lengths
