"""The decoder of the finished recognizer, with n-gram models of the transcripts that it was trained on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from asr.bundle import pipeline_config
from asr.configs import check_config, map_options
from asr.errors import AsrError, ConfigError
from asr.lm.text import label_splitter
from asr.pipeline import Pipeline
from asr.plugins import instantiate

NGRAM = "asr.lm.KneserNey"


def final_decoder(config: Mapping[str, Any], pipeline: Pipeline, texts: Iterable[str], folder: Path) -> dict[str, Any]:
    """The config of the finished recognizer's decoder: of `lm_decoder`, if there is one, else of `decoder`.

    Where an `lm` of `lm_decoder`, a model of words, or a `label_lm` is a number, it is the order of a model that is
    made here.

    Args:
        config: of the training.
        pipeline: whose words and labels are modelled.
        texts: transcripts.
        folder: gets the models.

    Raises:
        ConfigError: an option of the decoder is wrong.
    """
    decoder = config["lm_decoder"]
    if not decoder:
        return config["decoder"]
    if not isinstance(decoder, Mapping) or "_target_" not in decoder:
        raise ConfigError("lm_decoder: choose it by decoder@lm_decoder=NAME, such as beam; lm_decoder=null is none.")
    sentences = [pipeline.text(text) for text in texts]
    splitters: dict[str, tuple[str, Callable[[str], Sequence[str]]]] = {
        "lm": ("words", str.split),
        "label_lm": ("labels", label_splitter(pipeline.tokenizer)),
    }

    def model(key: str, order: Any) -> Any:
        kind = key.rsplit(".", 1)[-1]
        if kind not in splitters or not isinstance(order, int):
            return order
        if order < 1:
            raise ConfigError(f"lm_decoder.{key}={order}: must be the order of an n-gram model, or its path.")
        unit, split = splitters[kind]
        trainer = instantiate({"_target_": NGRAM, "order": order}, f"lm_decoder.{key}")
        metadata = {"text": config["text"], "train": ["the transcripts of the training"]}
        trainer.fit(map(split, sentences), unit, metadata).save(folder / key)
        return str(folder / key)

    found = map_options(decoder, model)
    check_config({**pipeline_config(config), "decoder": found}, Path("lm_decoder"))
    try:
        instantiate(found, "lm_decoder", tokenizer=pipeline.tokenizer)
    except AsrError as error:  # which names its options as if it were the only one
        raise ConfigError(re.sub(r"(?<![\w/.])decoder\.", "lm_decoder.", str(error))) from None
    return found
