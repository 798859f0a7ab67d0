"""A plugin-based speech-recognition pipeline with CTC.

>>> import asr
>>> recognizer = asr.load("runs/demo/bundle")  # doctest: +SKIP
>>> recognizer.transcribe("talk.wav").text  # doctest: +SKIP
'call seven three five'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asr.aligner import align
    from asr.errors import AsrError
    from asr.recognizer import Recognizer, load
    from asr.types import Hypothesis, Segment, Transcript, Utterance, Word

__all__ = ["AsrError", "Hypothesis", "Recognizer", "Segment", "Transcript", "Utterance", "Word", "align", "load"]

_HOMES = {
    "AsrError": "asr.errors",
    "Hypothesis": "asr.types",
    "Recognizer": "asr.recognizer",
    "Segment": "asr.types",
    "Transcript": "asr.types",
    "Utterance": "asr.types",
    "Word": "asr.types",
    "align": "asr.aligner",
    "load": "asr.recognizer",
}


def __getattr__(name: str) -> Any:
    # torch is loaded when something that needs it is asked for
    if name not in _HOMES:
        raise AttributeError(f"module 'asr' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
