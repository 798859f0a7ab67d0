"""The system on one screen: text → tokenizer → featurizer → encoder → head → decoder, from a config."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from asr.plugins import instantiate


@dataclass
class Pipeline:
    """The stages of a recognizer."""

    text: Callable[[str], str]
    """Normalises transcripts, for training and scoring alike."""
    tokenizer: Any
    """Text ↔ label ids; id 0 is blank."""
    model: Any
    """Waveforms → log-probabilities: an `AcousticModel`, or the `OnnxModel` of an exported file."""
    decoder: Any
    """Emissions → hypotheses."""

    def encode(self, transcript: str) -> list[int]:
        """A transcript as people write it → label ids."""
        return self.tokenizer.encode(self.text(transcript))


def build(
    config: Mapping[str, Any], texts: Iterable[str] | None = None, tokenizer: Any = None, model: Any = None
) -> Pipeline:
    """Build the stages that a config names; sizes flow forward from one stage to the next.

    Args:
        config: with the keys `text`, `tokenizer`, `featurizer`, `encoder`, `decoder`, `normalization`,
            and `self_conditioning` if it has any.
        texts: transcripts that the tokenizer learns its labels from.
        tokenizer: one that has its labels already, such as a bundle's; then no texts are needed.
        model: one that is there already, such as an exported one; then no featurizer and encoder are built.

    Raises:
        ConfigError: a component or option does not exist or does not fit.
    """
    text = instantiate(config["text"], "text")
    if tokenizer is None:
        tokenizer = instantiate(config["tokenizer"], "tokenizer")
        tokenizer.fit(map(text, texts or ()))
    if model is None:
        from asr.model import AcousticModel  # loads torch

        featurizer = instantiate(config["featurizer"], "featurizer")
        encoder = instantiate(config["encoder"], "encoder", input_dim=featurizer.dim)
        conditioning = config.get("self_conditioning") or ()
        model = AcousticModel(featurizer, encoder, len(tokenizer), config["normalization"], conditioning)
    decoder = instantiate(config["decoder"], "decoder", tokenizer=tokenizer)
    return Pipeline(text, tokenizer, model, decoder)
