"""The decoders that are compared: ours, bare greedy, and those of other packages; each decodes one utterance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asr.benchmarks.objective import text_log_prob
from asr.decoders import Beam, Flashlight
from asr.decoders.beam import CLOSED, OPEN
from asr.lm import Ngram
from asr.types import Emissions

FRAME_SECONDS = 0.02


@dataclass(frozen=True)
class Posteriors:
    """An utterance in the form that each decoder takes, none of which is made while it is timed."""

    log_probs: np.ndarray
    """(T, V) float32 natural logarithms."""

    @cached_property
    def emissions(self) -> Emissions:
        return Emissions(self.log_probs[None], np.array([len(self.log_probs)]), FRAME_SECONDS)

    @cached_property
    def probs(self) -> np.ndarray:
        return np.exp(self.log_probs)

    @cached_property
    def tensor(self) -> torch.Tensor:
        return torch.from_numpy(self.log_probs)

    def prepare(self) -> None:
        _ = self.emissions, self.probs, self.tensor


@dataclass(frozen=True)
class Task:
    """What all of them are to do, those without a language model as far as they can."""

    tokenizer: Any
    model: Ngram
    arpa: Path
    """The same model as a file, for the others."""
    beam: int = 100
    lm_weight: float = 0.5
    word_score: float = 0.5
    unknown_score: float = -5.0
    """Of open vocabularies."""

    @property
    def scores(self) -> dict[str, Any]:
        return {"lm_weight": self.lm_weight, "word_score": self.word_score}

    def objective(self, log_probs: np.ndarray, text: str, with_model: bool) -> float:
        """What a decoder is to find the highest of, for a text of (T, V) log-probabilities:

        ln p(text) by CTC + lm_weight ln p(words) + word_score · words + unknown_score · unknown words

        or, without a model, the first of these alone.
        """
        acoustic = text_log_prob(log_probs, self.tokenizer.encode(text), self.tokenizer.labels.index(" "))
        if not with_model:
            return acoustic
        words = text.split()
        unknown = sum(word not in self.model.ids for word in words)
        bonus = self.word_score * len(words) + self.unknown_score * unknown
        return acoustic + self.lm_weight * self.model.score(words) + bonus


Decode = Callable[[Posteriors], str]


def greedy(task: Task) -> Decode:
    """The limit: nothing but the best label of each frame."""

    def decode(utterance: Posteriors) -> str:
        path = utterance.tensor.argmax(-1).unique_consecutive()
        return " ".join(task.tokenizer.decode(path[path > 0].tolist()).split())

    return decode


def beam(task: Task, **options: Any) -> Decode:
    decoder = Beam(task.tokenizer, beam=task.beam, threads=1, **options)
    return lambda utterance: " ".join(decoder(utterance.emissions)[0][0].text.split())


def beam_lexicon(task: Task) -> Decode:
    return beam(task, lm=task.model, open_vocabulary=False, **task.scores)


def beam_open(task: Task) -> Decode:
    return beam(task, lm=task.model, unknown_score=task.unknown_score, **task.scores)


def flashlight(task: Task) -> Decode:
    import flashlight.lib.text  # noqa: F401

    # it prunes as ours does: by its own default it would be slower
    decoder = Flashlight(task.tokenizer, task.beam, CLOSED["beam_threshold"], lm=task.arpa, **task.scores)
    return lambda utterance: decoder(utterance.emissions)[0][0].text


def ctc_beam_decoder(task: Task) -> Decode:
    from ctc_beam_decoder import build_ctcdecoder

    decoder = build_ctcdecoder(
        ["", *task.tokenizer.labels[1:]],
        kenlm_model_path=str(task.arpa),
        unigrams=task.model.vocabulary[3:],
        alpha=task.lm_weight,
        beta=task.word_score,
        unk_score_offset=task.unknown_score / (task.lm_weight * math.log(10)),
    )
    return lambda utterance: " ".join(decoder.decode(utterance.log_probs, task.beam).split())


def fast_ctc_decode(task: Task) -> Decode:
    from fast_ctc_decode import beam_search

    alphabet = "".join(["-", *task.tokenizer.labels[1:]])

    def decode(utterance: Posteriors) -> str:
        text, _ = beam_search(utterance.probs, alphabet, task.beam, math.exp(-OPEN["label_threshold"]))
        return " ".join(text.split())

    return decode


DECODERS: dict[str, tuple[str, Callable[[Task], Decode]]] = {
    "greedy": ("greedy, bare", greedy),
    "beam": ("ours", beam),
    "beam_lexicon": ("ours, lexicon", beam_lexicon),
    "beam_open": ("ours, open vocabulary", beam_open),
    "fast_ctc_decode": ("fast-ctc-decode", fast_ctc_decode),
    "flashlight": ("flashlight, lexicon", flashlight),
    "ctc_beam_decoder": ("ctc-beam-decoder", ctc_beam_decoder),
}
RIVALS = {"beam": "fast_ctc_decode", "beam_lexicon": "flashlight", "beam_open": "ctc_beam_decoder"}
"""Which of the others does what ours does."""


def build(task: Task) -> tuple[dict[str, Decode], dict[str, str]]:
    """Every decoder that is installed, and for the others what is wrong."""
    found: dict[str, Decode] = {}
    missing: dict[str, str] = {}
    for name, (_, make) in DECODERS.items():
        try:
            found[name] = make(task)
        except (ImportError, OSError) as error:  # OSError: a library that this system cannot load
            missing[name] = str(error)
    return found, missing
