"""How often a recognizer emits each label."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rich.progress import track

from asr.data.index import ManifestIndex
from asr.errors import AsrError
from asr.recognizer import Recognizer
from asr.writers.files import whole_file


def estimate_prior(recognizer: Recognizer, manifest: str | Path) -> dict[str, float]:
    """The mean posterior of each label over the T frames of a manifest (Huang et al., arXiv 2406.02560):

        prior(k) = (1 + Σ_t p(k | x_t)) / (T + V)

    where the 1 and the V labels keep one that was never heard from having none.

    Raises:
        AudioError: a file cannot be read.
    """
    labels = recognizer.pipeline.tokenizer.labels
    sums, frames = np.ones(len(labels)), len(labels)
    utterances = list(ManifestIndex(manifest))
    batches = recognizer.read_batches(track(utterances, "computing emissions", transient=True))
    for batch in batches:
        if isinstance(batch[0][2], AsrError):
            raise batch[0][2]
        emissions = recognizer.emissions([samples for *_, samples in batch]).numpy()
        for log_probs, length in zip(emissions.log_probs, emissions.lengths, strict=True):
            sums += np.exp(np.float64(log_probs[:length])).sum(0)
            frames += int(length)
    return dict(zip(labels, (sums / frames).tolist(), strict=True))


def write_prior(prior: dict[str, float], path: Path) -> None:
    """Write a prior as JSON, for `decoder.label_prior`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, "out") as file:
        file.write(json.dumps(prior, ensure_ascii=False, indent=1) + "\n")
