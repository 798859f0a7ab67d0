"""Emissions → hypotheses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asr.decoders.greedy import Greedy

if TYPE_CHECKING:
    from asr.decoders.beam import Beam
    from asr.decoders.flashlight import Flashlight
    from asr.decoders.rescoring import Rescored

__all__ = ["Beam", "Flashlight", "Greedy", "Rescored"]


def __getattr__(name: str) -> Any:
    if name == "Beam":  # later, because it loads numba
        from asr.decoders.beam import Beam

        return Beam
    if name == "Flashlight":
        from asr.decoders.flashlight import Flashlight

        return Flashlight
    if name == "Rescored":
        from asr.decoders.rescoring import Rescored

        return Rescored
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
