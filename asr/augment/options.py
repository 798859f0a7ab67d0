"""Checks of options that several augmentations have."""

from __future__ import annotations

from asr.errors import ConfigError


def check_probability(name: str, probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ConfigError(f"augment.{name}.probability={probability}: must be from 0 to 1.")


def check_range(name: str, unit: str, lowest: float, highest: float, least: float, most: float) -> None:
    """`lowest{unit}` and `highest{unit}` must ascend, and stay within `least` and `most`."""
    if not least <= lowest <= highest <= most:
        raise ConfigError(
            f"augment.{name}: lowest{unit}={lowest} and highest{unit}={highest} must ascend, "
            f"within {least:g} … {most:g}."
        )
