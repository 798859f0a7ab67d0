"""The errors a person reads: what was wrong, where, and the way out.

The commands print these bare and exit with status 1. Any other exception is a bug
and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AsrError(Exception):
    """Base of all errors that a user of the toolkit can cause and mend."""


class ConfigError(AsrError):
    """A configuration key, component or option that does not exist or does not fit."""


class DataError(AsrError):
    """A corpus, manifest, transcript or text that cannot be used."""


class AudioError(DataError):
    """An audio file that cannot be read, or holds nothing that can be recognized."""


class CheckpointError(AsrError):
    """A checkpoint or bundle that is missing, damaged, unsafe or of another model."""


class TrainingError(AsrError):
    """A training that cannot go on: numbers that are none, too little memory, a process that was lost."""


def near_matches(name: str, options: Iterable[str]) -> str:
    """Return a sentence that offers what `name` was likely meant to be, or lists the options."""
    options = sorted(set(options))
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"There are: {', '.join(options)}." if options else "There are none."
