"""Emissions → hypotheses."""

from asr.decoders.greedy import Greedy

__all__ = ["Greedy"]
