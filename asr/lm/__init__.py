"""Language models: n-grams trained, read and written here; `load` opens any kind."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from asr.errors import CheckpointError, near_matches
from asr.lm.base import LanguageModel, Perplexity
from asr.lm.folder import HEADER, read_header
from asr.lm.kneser_ney import KneserNey
from asr.lm.ngram import Ngram

KINDS = {"ngram": "asr.lm.ngram.Ngram", "lstm": "asr.lm.lstm.Lstm"}
"""The class of each kind of model that an `lm.yaml` names; it has `load(folder)`."""


def load(path: str | Path) -> LanguageModel:
    """Open a language model: the folder of a trained one, or an ARPA file, plain or gzipped.

    Raises:
        CheckpointError: nothing there, of a kind that is not known, or damaged.
        DataError: a damaged ARPA file.
    """
    path = Path(path)
    kind = read_header(path)["kind"] if path.is_dir() else "ngram"
    if kind not in KINDS:
        raise CheckpointError(f"{path / HEADER}: no such kind of language model: '{kind}'. {near_matches(kind, KINDS)}")
    module, name = KINDS[kind].rsplit(".", 1)
    model: LanguageModel = getattr(import_module(module), name).load(path)
    return model


__all__ = ["KneserNey", "LanguageModel", "Ngram", "Perplexity", "load"]
