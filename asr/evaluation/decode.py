"""A recognizer over a manifest → results."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import track

from asr.data.index import ManifestIndex
from asr.errors import AsrError, DataError
from asr.evaluation.result import Result, make_results

if TYPE_CHECKING:
    from asr.recognizer import Recognizer


def evaluate_manifest(recognizer: Recognizer, manifest: str | Path) -> tuple[list[Result], float]:
    """Recognize every utterance of a manifest, and count its errors against the normalised transcript.

    Returns:
        the results in the manifest's order, and the seconds that reading and recognizing took.

    Raises:
        AudioError: a file cannot be read.
        DataError: an utterance has no transcript to score against.
    """
    utterances = list(ManifestIndex(manifest))
    for utterance in utterances:
        if utterance.text is None:
            raise DataError(f"{manifest}: utterance '{utterance.id}' has no 'text' to score against.")
    normalise = recognizer.pipeline.text
    hypotheses = [""] * len(utterances)
    durations = [0.0] * len(utterances)
    started = time.monotonic()
    decoded = recognizer.transcribe_each(utterances)
    for index, transcript in track(decoded, "recognizing", total=len(utterances), transient=True):
        if isinstance(transcript, AsrError):
            raise transcript
        hypotheses[index], durations[index] = transcript.text, transcript.duration
    seconds = time.monotonic() - started
    references = [
        replace(utterance, text=normalise(utterance.text or ""), duration=duration)
        for utterance, duration in zip(utterances, durations, strict=True)
    ]
    return make_results(references, hypotheses), seconds
