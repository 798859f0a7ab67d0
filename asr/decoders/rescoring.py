"""A second look at n-best lists, by language models too slow or too far-sighted for the search itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from asr.decoders.beam import Beam
from asr.decoders.greedy import Spelling
from asr.errors import ConfigError, near_matches
from asr.lm import load
from asr.lm.base import SPACE, SPECIAL
from asr.plugins import check_type
from asr.types import Emissions, Hypothesis


class Rescored:
    """Beam search whose best hypotheses another language model puts into a new order (Mikolov, Interspeech 2010).

    A hypothesis of score s, to which the language models of the search contribute l (its `lm_score`), gets

        s + (keep - 1) l + lm_weight ln p(text) + word_score · words

    where p is the other model's probability of the whole text, its beginning and end included; `lm_score` becomes
    keep · l + lm_weight ln p(text), and everything else stays: equal scores keep the order of the search. A model of
    labels sees the labels in which the tokenizer writes the text. All texts of a batch are scored in one go. Nothing is
    known before the end of an utterance, so there is no streaming.

    Args:
        tokenizer: turns labels into text; label 0 is blank.
        lm: a language model of any kind: a folder written by `train_lm`, an ARPA file, or the model itself.
        lm_weight: of its log-probabilities.
        keep: of what the models of the search contribute; 0 replaces them, 1 adds to them.
        word_score: what each word earns, beside what it earned in the search.
        candidates: hypotheses that the search hands over for each utterance.
        nbest: how many of them are returned.
        lm_device: where the model computes: auto (CUDA if there is any), cpu, cuda, cuda:1, …
        beam: options of `Beam`, but for `nbest`.

    Raises:
        ConfigError: an option is out of range or not one of `Beam`'s, or the model does not fit the tokenizer.
        CheckpointError: there is no such model, or it is damaged.
    """

    def __init__(
        self,
        tokenizer: Spelling,
        lm: Any,
        lm_weight: float = 0.5,
        keep: float = 1.0,
        word_score: float = 0.0,
        candidates: int = 50,
        nbest: int = 1,
        lm_device: str = "auto",
        beam: Mapping[str, Any] | None = None,
    ):
        for name, value, least in (("lm_weight", lm_weight, 0), ("keep", keep, 0), ("nbest", nbest, 1)):
            if value < least:
                raise ConfigError(f"decoder.{name}={value}: must be {least} or more.")
        if candidates < nbest:
            raise ConfigError(f"decoder.candidates={candidates}: must be as many as decoder.nbest={nbest}, or more.")
        if lm is None:
            raise ConfigError("decoder.lm: has to be given: decoder.lm=FOLDER. Without a model, take decoder=beam.")
        self.tokenizer, self.nbest = tokenizer, nbest
        self.lm_weight, self.keep, self.word_score = lm_weight, keep, word_score
        self.lm: Any = load(lm) if isinstance(lm, str | Path) else lm
        self._check_vocabulary()
        if hasattr(self.lm, "to"):
            _move(self.lm, lm_device)
        _check_options(beam or {})
        try:
            self.search = Beam(tokenizer, nbest=candidates, **(beam or {}))
        except ConfigError as error:  # which names its options as if it were the decoder
            raise ConfigError(re.sub(r"(?<![\w/.])decoder\.", "decoder.beam.", str(error))) from None

    def __call__(self, emissions: Emissions) -> list[list[Hypothesis]]:
        """(B, T, V) log-probabilities as NumPy → the n-best list of each utterance."""
        return [best[: self.nbest] for best in self.rescore(self.search(emissions))]

    def rescore(self, utterances: Sequence[Sequence[Hypothesis]]) -> list[list[Hypothesis]]:
        """The hypotheses of each utterance, from any decoder, with new scores and in their order."""
        everything = [hypothesis for hypotheses in utterances for hypothesis in hypotheses]
        units = list(dict.fromkeys(self._units(hypothesis) for hypothesis in everything))
        log_probs = dict(zip(units, self._score(units), strict=True))
        return [
            sorted((self._rescore(h, log_probs[self._units(h)]) for h in hypotheses), key=lambda h: -h.score)
            for hypotheses in utterances
        ]

    def _rescore(self, hypothesis: Hypothesis, log_prob: float) -> Hypothesis:
        first = hypothesis.lm_score or 0.0
        lm_score = self.keep * first + self.lm_weight * log_prob
        score = hypothesis.score - first + lm_score + self.word_score * len(_words(hypothesis))
        return replace(hypothesis, score=score, lm_score=lm_score)

    def _score(self, sentences: list[tuple[str, ...]]) -> list[float]:
        """Natural log-probabilities of sentences in the model's units."""
        if hasattr(self.lm, "score_batch"):
            return np.asarray(self.lm.score_batch(sentences)).tolist()
        return [self.lm.score(sentence) for sentence in sentences]

    def _units(self, hypothesis: Hypothesis) -> tuple[str, ...]:
        if self.lm.unit == "words":
            return _words(hypothesis)
        labels = self.tokenizer.encode(hypothesis.text)
        return tuple(self.tokenizer.labels[label].replace(" ", SPACE) for label in labels)

    def _check_vocabulary(self) -> None:
        if self.lm.unit == "words":
            if all(self.tokenizer.unknown(word) for word in self.lm.vocabulary[len(SPECIAL) :]):
                raise ConfigError(
                    "decoder.lm: none of its words can be spelled with the tokenizer's labels. Train it on text that "
                    "went through this recognizer's text=…, in the same case."
                )
            return
        labels = [label.replace(" ", SPACE) for label in self.tokenizer.labels[1:]]
        missing = sorted({*labels} - {*self.lm.vocabulary})
        if len(missing) > len(labels) // 2:
            raise ConfigError(
                f"decoder.lm: a model of labels that does not know {len(missing)} of the tokenizer's {len(labels)}, "
                f"such as '{missing[0]}'. Train it with this recognizer's tokenizer, or take a model of words."
            )


def _words(hypothesis: Hypothesis) -> tuple[str, ...]:
    """The words as the search counts them: Chinese characters are words of their own."""
    return tuple(word.text for word in hypothesis.words) or tuple(hypothesis.text.split())


def _move(model: Any, device: str) -> None:
    import torch

    try:
        model.to("cpu" if device == "auto" and not torch.cuda.is_available() else device.replace("auto", "cuda"))
    except (RuntimeError, AssertionError) as error:
        problem = str(error).splitlines()[0]
        raise ConfigError(f"decoder.lm_device={device}: {problem} Take auto, cpu or cuda.") from None


def _check_options(beam: Mapping[str, Any]) -> None:
    parameters = dict(list(inspect.signature(Beam).parameters.items())[1:])
    for name, value in beam.items():
        if name == "nbest":
            raise ConfigError("decoder.beam.nbest: say decoder.candidates=… instead.")
        if name not in parameters:
            raise ConfigError(f"decoder.beam: has no option '{name}'. {near_matches(str(name), parameters)}")
        check_type(value, parameters[name].annotation, f"decoder.beam.{name}")
