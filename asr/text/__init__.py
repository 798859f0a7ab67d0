"""Text normalisers: callables `str -> str`, applied to training text and references alike."""

from asr.text.normalizer import Normalizer

__all__ = ["Normalizer"]
