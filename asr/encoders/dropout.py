"""Dropout with a share that is checked."""

from __future__ import annotations

from torch import nn

from asr.errors import ConfigError


def make_dropout(share: float, option: str = "dropout") -> nn.Dropout:
    """A layer that makes this share of its input zero in training.

    Raises:
        ConfigError: it is no share; the message names the encoder's option.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"encoder.{option}={share}: must be 0 or more, and below 1.")
    return nn.Dropout(share)
