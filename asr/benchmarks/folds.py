"""What decoders and language models gain, on folds of speakers: every fold scored by what the others taught.

Given are the runs of a cross-validation (`data.validation_fold=0`, 1, …), whose held-out speakers make up the corpus.
The language model of a run is trained on the transcripts of the other runs' speakers, as its acoustic model was; the
weights with which a fold is scored are those that make the fewest errors on the other folds.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from asr.benchmarks.report import Measurement, machine
from asr.errors import ConfigError
from asr.evaluation.counts import ErrorCounts, count_words
from asr.evaluation.tuning import Speech, load_speech
from asr.recognizer import Recognizer, load

WORDS = {"lm_weight": [0.2, 0.3, 0.4, 0.5, 0.6, 0.8], "word_score": [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]}
LABELS = {"label_lm_weight": [0.2, 0.35, 0.5, 0.65, 0.8], "label_score": [0.0, 0.5, 1.0, 1.5]}
BOTH = {
    "lm_weight": [0.2, 0.4, 0.6],
    "word_score": [0.5, 1.0, 1.5],
    "label_lm_weight": [0.1, 0.2, 0.35],
    "label_score": [0.0, 0.5, 1.0],
}
DECODERS: dict[str, tuple[tuple[str, ...], dict[str, Any], dict[str, list[float]]]] = {
    "word LM": (("lm",), {}, WORDS),
    "word LM, its words only": (("lm",), {"open_vocabulary": False}, WORDS),
    "label LM": (("label_lm",), {}, LABELS),
    "label LM, word LM, its words only": (("lm", "label_lm"), {"open_vocabulary": False}, BOTH),
}
"""For each row the models, the options, and the values among which the other folds choose."""
HOTWORD_WEIGHTS = [0.0, 2.0, 4.0, 6.0, 10.0, 14.0]


class Fold:
    """A run with the emissions of its held-out speakers, and a language model of the others' transcripts."""

    def __init__(self, run: Path, recognizer: Recognizer, speech: Speech):
        self.run, self.recognizer, self.speech = run, recognizer, speech
        self.models: dict[str, Any] = {}

    def count(self, decoder: Any) -> ErrorCounts:
        """The word errors of a decoder."""
        counts = ErrorCounts()
        for emissions, references in self.speech.batches():
            counts += count_words(references, [n_best[0].text for n_best in decoder(emissions)])
        return counts


def folds(config: Mapping[str, Any], folder: Path) -> tuple[list[Measurement], dict[str, Any]]:
    """Score greedy decoding, beam search, and beam search with an n-gram model, open and closed.

    Args:
        config: with `runs`, of several seeds if their folders come in the order of the folds, seed after seed.
        folder: for the emissions.
    """
    from asr.decoders import Beam, Greedy

    runs = [Path(run) for run in config["runs"] or ()]
    if len(runs) < 2:
        raise ConfigError("runs: which ones? runs=[runs/an4/fold0,runs/an4/fold1,…], one for each fold of speakers.")
    cuts = list(_open(runs, config, folder))
    measured: list[Measurement] = []
    totals: dict[str, list[ErrorCounts]] = {}
    for seed, group in enumerate(_by_partition(cuts)):
        for fold in group:
            _train_models(fold, [other for other in group if other is not fold], config["order"], config["label_order"])
        found: dict[str, ErrorCounts] = {
            "greedy": sum((fold.count(Greedy(fold.recognizer.pipeline.tokenizer)) for fold in group), ErrorCounts()),
            "beam": sum((fold.count(Beam(fold.recognizer.pipeline.tokenizer)) for fold in group), ErrorCounts()),
        }
        for name, (models, options, values) in DECODERS.items():
            found[f"beam, {name}"] = _cross_tuned(group, models, options, values)
        for name, counts in found.items():
            totals.setdefault(name, []).append(counts)
            note = counts.format("WER").removeprefix("WER ")
            measured.append(
                Measurement(f"{name} {seed}", f"{name}, group {seed}", 100 * counts.rate, "% WER", note=note)
            )
        for weight in (None, *HOTWORD_WEIGHTS) if config["hotwords"] else ():
            measured.append(_hotwords(group, set(config["hotwords"]), weight, config["order"], seed))
    for name, groups in totals.items():
        rates = [100 * counts.rate for counts in groups]
        note = f"from {min(rates):.2f} to {max(rates):.2f}; {sum(groups, ErrorCounts()).format('all')}"
        measured.append(Measurement(name, f"{name}, mean of {len(rates)}", sum(rates) / len(rates), "% WER", note=note))
    return measured, machine(cuts[0].recognizer.device) | {"runs": len(runs), "n-gram order": config["order"]}


def _open(runs: Sequence[Path], config: Mapping[str, Any], folder: Path) -> Iterator[Fold]:
    for number, run in enumerate(runs):
        if not (run / "validation.jsonl").is_file():
            raise ConfigError(f"runs: {run} has no validation.jsonl: it held no speakers out.")
        last = run / "checkpoints" / "last.ckpt"  # the best one was chosen on these very speakers
        recognizer = load(last if last.is_file() else run, config["device"], None, config["batch_seconds"])
        yield Fold(run, recognizer, load_speech(recognizer, run / "validation.jsonl", folder / str(number)))


def _by_partition(cuts: Sequence[Fold]) -> list[list[Fold]]:
    """Split the folds into groups that each hold every utterance once."""
    groups: list[list[Fold]] = []
    for fold in cuts:
        ids = fold.speech.ids
        for group in groups:
            if not any(ids & other.speech.ids for other in group):
                group.append(fold)
                break
        else:
            groups.append([fold])
    if len({frozenset().union(*(fold.speech.ids for fold in group)) for group in groups}) > 1:
        raise ConfigError("runs: they do not make up whole cross-validations: each needs all folds of its speakers.")
    return groups


def _train_models(fold: Fold, others: Sequence[Fold], order: int, label_order: int) -> None:
    """Models of the words and of the labels that the others' speakers said."""
    from asr.lm import KneserNey
    from asr.lm.base import SPACE

    texts, tokenizer = (
        [text for other in others for text in other.speech.references],
        fold.recognizer.pipeline.tokenizer,
    )
    spelled = [[tokenizer.labels[label].replace(" ", SPACE) for label in tokenizer.encode(text)] for text in texts]
    fold.models["lm"] = KneserNey(order=order).fit([text.split() for text in texts])
    fold.models["label_lm"] = KneserNey(order=label_order).fit(spelled, unit="labels")


def _cross_tuned(
    group: Sequence[Fold], models: Sequence[str], options: Mapping[str, Any], values: Mapping[str, Sequence[float]]
) -> ErrorCounts:
    """The errors on each fold with the weights that make the fewest on the others, summed."""
    from asr.decoders import Beam

    counts: dict[tuple[float, ...], list[ErrorCounts]] = {}
    with Progress(transient=True) as progress:
        for choice in progress.track(list(itertools.product(*values.values())), description="decoding"):
            weights = dict(zip(values, choice, strict=True))
            counts[choice] = []
            for fold in group:
                chosen = {**options, **weights, **{model: fold.models[model] for model in models}}
                counts[choice].append(fold.count(Beam(fold.recognizer.pipeline.tokenizer, **chosen)))
    total = ErrorCounts()
    for scored in range(len(group)):
        best = min(counts, key=lambda choice: sum(c.errors for k, c in enumerate(counts[choice]) if k != scored))
        total += counts[best][scored]
    return total


def _hotwords(group: Sequence[Fold], words: set[str], weight: float | None, order: int, seed: int) -> Measurement:
    """The errors on utterances without some words, which a model of other sentences does not know; how many are found.

    `weight` is that of the words as hotwords, `None` to name none.
    """
    from asr.decoders import Beam
    from asr.lm import KneserNey

    counts, there, found, wrong = ErrorCounts(), 0, 0, 0
    for fold in group:
        texts = [text.split() for other in group if other is not fold for text in other.speech.references]
        options: dict[str, Any] = {"lm": KneserNey(order=order).fit([text for text in texts if not words & {*text}])}
        if weight is not None:
            options |= {"hotwords": sorted(words), "hotword_weight": weight}
        decoder = Beam(fold.recognizer.pipeline.tokenizer, lm_weight=0.5, word_score=1.5, **options)
        for emissions, references in fold.speech.batches():
            for reference, n_best in zip(references, decoder(emissions), strict=True):
                said, heard = Counter(reference.split()), Counter(n_best[0].text.split())
                there += sum(said[word] for word in words)
                found += sum(min(said[word], heard[word]) for word in words)
                wrong += sum(max(heard[word] - said[word], 0) for word in words)
                if not words & said.keys():
                    counts += count_words([reference], [n_best[0].text])
    name = "no hotwords" if weight is None else f"hotwords of weight {weight:g}"
    note = f"{found} of {there} found, {wrong} false; {counts.format('others')}"
    return Measurement(f"{name} {seed}", f"{name}, group {seed}", 100 * counts.rate, "% WER", note=note)
