"""How far the times of words are from where they are spoken, and the decoder's from the aligner's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from asr.aligner import align_each
from asr.benchmarks.report import Measurement, machine
from asr.data.index import ManifestIndex
from asr.decoders import Beam, Greedy
from asr.errors import AsrError, ConfigError, DataError
from asr.evaluation.alignment import align as pair
from asr.recognizer import Recognizer, load
from asr.types import Utterance, Word

TARGET = 80.0
"""Milliseconds: the most that half of the words may start too early or too late."""
DECODERS = {"greedy": Greedy, "beam": Beam}
Span = tuple[float | None, float | None]
"""Start and end in seconds, as far as they are known."""


def word_times(config: Mapping[str, Any], folder: Path) -> tuple[list[Measurement], dict[str, Any]]:
    """Compare the times of greedy decoding, beam search and aligner.

    Each decoder with the aligner, for what it recognized, and all with the manifest's `word_times`, if there are any:
    start and end of each word in seconds, or null, as of the corpus `synthetic`; there the right words count.

    Args:
        config: the composed `benchmark.yaml`.
        folder: not used.
    """
    for key in ("checkpoint", "manifest"):
        if not config[key]:
            raise ConfigError(f"{key}: has to be given for word times: {key}=…")
    recognizer = load(config["checkpoint"], config["device"], None, config["batch_seconds"])
    utterances = list(ManifestIndex(config["manifest"]))[: config["utterances"] or None]
    for utterance in utterances:
        if utterance.text is None:
            raise DataError(f"{config['manifest']}: utterance '{utterance.id}' has no 'text' to align.")
    found = _decode(recognizer, utterances) | {"aligner": _align(recognizer, utterances)}
    references = [recognizer.pipeline.text(utterance.text or "") for utterance in utterances]
    known = [_known(utterance, text) for utterance, text in zip(utterances, references, strict=True)]
    measured: list[Measurement] = []
    for name, words in found.items():
        matched = [match for row in zip(references, words, known, strict=True) for match in _match(*row)]
        for k, edge in enumerate(("start", "end")):
            errors = [1000 * ((w.start, w.end)[k] - at) for w, span in matched if (at := span[k]) is not None]
            measured += _errors(name, edge, np.array(errors)) if errors else []
    for name in DECODERS:
        heard = [replace(u, text=_text(words)) for u, words in zip(utterances, found[name], strict=True)]
        measured.append(_agreement(name, found[name], _align(recognizer, heard), recognizer.model.frame_seconds))
    setting = {"utterances": len(utterances), "words": sum(map(len, known)), "manifest": config["manifest"]}
    return measured, machine(recognizer.device) | setting | {"frame": f"{recognizer.model.frame_seconds:g} s"}


def _decode(recognizer: Recognizer, utterances: Sequence[Utterance]) -> dict[str, list[tuple[Word, ...]]]:
    """The words of each utterance, by decoder."""
    tokenizer = recognizer.pipeline.tokenizer
    decoders = {name: make(tokenizer) for name, make in DECODERS.items()}
    found: dict[str, list[tuple[Word, ...]]] = {name: [()] * len(utterances) for name in decoders}
    for batch in recognizer.read_batches(utterances):
        if isinstance(batch[0][2], AsrError):
            raise batch[0][2]
        emissions = recognizer.emissions([samples for *_, samples in batch]).numpy()
        for name, decoder in decoders.items():
            for (index, *_), n_best in zip(batch, decoder(emissions), strict=True):
                found[name][index] = n_best[0].words
    return found


def _align(recognizer: Recognizer, utterances: Sequence[Utterance]) -> list[tuple[Word, ...]]:
    found: list[tuple[Word, ...]] = [()] * len(utterances)
    for index, result in align_each(recognizer, utterances):
        if isinstance(result, AsrError):
            raise result
        found[index] = result.words
    return found


def _known(utterance: Utterance, text: str) -> list[Span]:
    """Where each word of an utterance is spoken."""
    count = len(text.split())
    times = utterance.extra.get("word_times") or [(None, None)] * count
    if len(times) != count:
        raise DataError(f"utterance '{utterance.id}': {count} words in its text, but {len(times)} in its word_times.")
    return [(start, end) for start, end in times]


def _match(reference: str, words: Sequence[Word], known: Sequence[Span]) -> list[tuple[Word, Span]]:
    """The words that were recognized, with their known times."""
    [pairs] = pair([reference], [_text(words)])
    matched, said, heard = [], 0, 0
    for one, other in pairs:
        if one == other:
            matched.append((words[heard], known[said]))
        said, heard = said + (one is not None), heard + (other is not None)
    return matched


def _errors(name: str, edge: str, errors: np.ndarray) -> list[Measurement]:
    """The median of the absolute errors (N,) in ms, and what nine tenths of them do not exceed."""
    median, most = np.percentile(np.abs(errors), (50, 90)).tolist()
    bias = float(np.median(errors))
    note = f"90 % within {most:.0f}; median {abs(bias):.0f} {'late' if bias > 0 else 'early'}; {len(errors)} words"
    target = TARGET if edge == "start" else None
    return [
        Measurement(f"{name}_{edge}", f"{name}: {edge}, half within", median, "ms", target, note),
        Measurement(f"{name}_{edge}_90", f"{name}: {edge}, 90 % within", most, "ms", shown=False),
        Measurement(f"{name}_{edge}_bias", f"{name}: {edge}, median", bias, "ms", shown=False),
    ]


def _agreement(
    name: str, decoded: Sequence[Sequence[Word]], aligned: Sequence[Sequence[Word]], frame_seconds: float
) -> Measurement:
    """How many starts and ends of a decoder's words are those that the aligner finds for them, within two frames."""
    apart = [
        round(abs(a - b) / frame_seconds)
        for one, other in zip(decoded, aligned, strict=True)
        for word, its in zip(one, other, strict=True)
        for a, b in ((word.start, its.start), (word.end, its.end))
    ]
    near, equal = (100 * sum(frames <= most for frames in apart) / max(1, len(apart)) for most in (2, 0))
    note = f"{equal:.2f} % in the same frame; {len(apart) // 2} words"
    return Measurement(f"{name}_aligner", f"{name} and aligner within two frames", near, "% of times", note=note)


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)
