"""Waveforms → features, on the device, inside the model."""

from asr.featurizers.normalization import GlobalNorm, UtteranceNorm
from asr.featurizers.spectral import LogMel, Mfcc, Spectrogram

__all__ = ["GlobalNorm", "LogMel", "Mfcc", "Spectrogram", "UtteranceNorm"]
