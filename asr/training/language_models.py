"""The decoder of the finished recognizer, with n-gram models of the transcripts that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from asr.data.module import SpeechData
from asr.lm.text import label_splitter
from asr.pipeline import Pipeline
from asr.plugins import instantiate

NGRAM = "asr.lm.KneserNey"


def with_language_models(
    decoder: Mapping[str, Any], pipeline: Pipeline, data: SpeechData, folder: Path
) -> dict[str, Any]:
    """A decoder's config with models in the place of their orders.

    Args:
        decoder: where its `lm`, a model of words, or its `label_lm` is a number, that is the order of a model to make.
        pipeline: whose texts and labels are modelled.
        data: the utterances that are trained on.
        folder: gets the models.

    Raises:
        ConfigError: an option of the decoder is wrong.
    """
    splitters: dict[str, tuple[str, Callable[[str], Sequence[str]]]] = {
        "lm": ("words", str.split),
        "label_lm": ("labels", label_splitter(pipeline.tokenizer)),
    }
    found = dict(decoder)
    for key, (unit, split) in splitters.items():
        if isinstance(order := decoder.get(key), int):
            trainer = instantiate({"_target_": NGRAM, "order": order}, f"lm_decoder.{key}")
            sentences = (split(pipeline.text(data.train.text(int(k)))) for k in data.train_indices)
            trainer.fit(sentences, unit, {"text": "the training transcripts"}).save(folder / key)
            found[key] = str(folder / key)
    instantiate(found, "lm_decoder", tokenizer=pipeline.tokenizer)  # what is wrong shows now
    return found
