"""What decoders and language models gain, on folds of speakers: every fold scored by what the others taught.

Given are the runs of a cross-validation (`data.validation_fold=0`, 1, …), whose held-out speakers make up the corpus.
The language models of a run are trained on the transcripts of the other runs' speakers, as its acoustic model was; the
weights with which a fold is scored are those that make the fewest errors on the other folds.
"""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from asr.benchmarks.report import Measurement, machine
from asr.errors import ConfigError
from asr.evaluation.counts import ErrorCounts, count_words
from asr.evaluation.tuning import Speech, load_speech
from asr.plugins import instantiate
from asr.recognizer import Recognizer, load

WORDS = {"lm_weight": [0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.3], "word_score": [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]}
LABELS = {"label_lm_weight": [0.2, 0.35, 0.5, 0.65, 0.8, 1.0], "label_score": [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]}
BOTH = {
    "lm_weight": [0.2, 0.4, 0.6],
    "word_score": [0.0, 0.5, 1.0],
    "label_lm_weight": [0.1, 0.2, 0.35, 0.5],
    "label_score": [0.5, 1.0, 1.5],
}
SECOND = {"lm_weight": [0.2, 0.35, 0.5, 0.7, 1.0], "keep": [0.0, 0.5, 1.0], "word_score": [-0.5, 0.0, 0.5, 1.0]}
"""Of the model that rescores."""
DECODERS: dict[str, tuple[tuple[str, ...], dict[str, Any], dict[str, list[float]]]] = {
    "word LM": (("lm",), {}, WORDS),
    "word LM, its words only": (("lm",), {"open_vocabulary": False}, WORDS),
    "label LM": (("label_lm",), {}, LABELS),
    "label LM, word LM, its words only": (("lm", "label_lm"), {"open_vocabulary": False}, BOTH),
}
"""For each row the models, the options, and the values among which the other folds choose."""
RESCORED = ("word LM", "label LM, word LM, its words only")
"""The rows whose n-best lists are rescored besides."""
HOTWORD_WEIGHTS = [0.0, 2.0, 4.0, 6.0, 10.0, 14.0]

Trials = list[tuple[dict[str, float], list[ErrorCounts]]]
"""Choices of weights, and the errors that each makes on every fold."""
Scored = list[tuple[dict[str, float], ErrorCounts]]
"""For every fold the weights with which it is scored, and its errors."""


class Fold:
    """A run with the emissions of its held-out speakers, and language models of the others' transcripts."""

    def __init__(self, run: Path, recognizer: Recognizer, speech: Speech):
        self.run, self.recognizer, self.speech = run, recognizer, speech
        self.tokenizer = recognizer.pipeline.tokenizer
        self.models: dict[str, Any] = {}

    def count(self, decoder: Any) -> ErrorCounts:
        """The word errors of a decoder."""
        counts = ErrorCounts()
        for emissions, references in self.speech.batches():
            counts += count_words(references, [n_best[0].text for n_best in decoder(emissions)])
        return counts


def folds(config: Mapping[str, Any], folder: Path) -> tuple[list[Measurement], dict[str, Any]]:
    """Score greedy decoding, beam search, beam search with n-gram models, and its n-best lists rescored by an LSTM.

    Args:
        config: with `runs`, of several seeds if their folders come in the order of the folds, seed after seed.
        folder: for the emissions.
    """
    from asr.decoders import Beam, Greedy

    runs = [Path(run) for run in config["runs"] or ()]
    if len(runs) < 2:
        raise ConfigError("runs: which ones? runs=[runs/an4/fold0,runs/an4/fold1,…], one for each fold of speakers.")
    torch.set_num_threads(config["threads"] or torch.get_num_threads())
    cuts = list(_open(runs, config, folder))
    lstms: dict[tuple[str, ...], Any] = {}
    measured: list[Measurement] = []
    totals: dict[str, list[ErrorCounts]] = {}
    for seed, group in enumerate(_by_partition(cuts)):
        for fold in group:
            _train_models(fold, [other for other in group if other is not fold], config, lstms)
        rows: dict[str, Scored] = {
            "greedy": [({}, fold.count(Greedy(fold.tokenizer))) for fold in group],
            "beam": [({}, fold.count(Beam(fold.tokenizer))) for fold in group],
        }
        for name, (models, options, values) in DECODERS.items():
            rows[f"beam, {name}"] = best = _best_elsewhere(_search(group, models, options, values))
            if config["rescore"] and name in RESCORED:
                searches = [{**options, **weights} for weights, _ in best]
                rows[f"beam, {name}, rescored"] = _cross_rescored(group, models, searches)
        for name, scored in rows.items():
            counts = sum((counts for _, counts in scored), ErrorCounts())
            totals.setdefault(name, []).append(counts)
            note = "; ".join((counts.format("WER").removeprefix("WER "), *_spans([weights for weights, _ in scored])))
            measured.append(
                Measurement(f"{name} {seed}", f"{name}, group {seed}", 100 * counts.rate, "% WER", note=note)
            )
        for weight in (None, *HOTWORD_WEIGHTS) if config["hotwords"] else ():
            measured.append(_hotwords(group, set(config["hotwords"]), weight, config["order"], seed))
    for name, groups in totals.items():
        rates = [100 * counts.rate for counts in groups]
        note = f"from {min(rates):.2f} to {max(rates):.2f}; {sum(groups, ErrorCounts()).format('all')}"
        measured.append(Measurement(name, f"{name}, mean of {len(rates)}", sum(rates) / len(rates), "% WER", note=note))
    return measured, machine(cuts[0].recognizer.device) | {
        "runs": len(runs),
        "n-grams": f"of order {config['order']} over words, {config['label_order']} over labels",
    }


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


def _train_models(
    fold: Fold, others: Sequence[Fold], config: Mapping[str, Any], lstms: dict[tuple[str, ...], Any]
) -> None:
    """Models of what the others' speakers said; those of `lstms` are taken where they were trained on the same."""
    from asr.lm import KneserNey
    from asr.lm.text import label_splitter

    texts = sorted(text for other in others for text in other.speech.references)
    words, labels = [text.split() for text in texts], map(label_splitter(fold.tokenizer), texts)
    fold.models["lm"] = KneserNey(order=config["order"]).fit(words)
    fold.models["label_lm"] = KneserNey(order=config["label_order"]).fit(labels, unit="labels")
    if config["rescore"]:
        if tuple(texts) not in lstms:  # runs of other seeds hold out the same speakers
            print(f"training an LSTM model of {len(texts):,} transcripts")
            with redirect_stdout(io.StringIO()):
                lstms[tuple(texts)] = instantiate(config["lstm"], "lstm").fit(words)
        fold.models["lstm"] = lstms[tuple(texts)]


def _choices(values: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    return [dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values())]


def _spans(weights: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """The values of each weight, from the least to the most, to see where the choice was too narrow."""
    for name in weights[0]:
        values = sorted(choice[name] for choice in weights)
        yield f"{name} {values[0]:g}" + (f" to {values[-1]:g}" if values[-1] > values[0] else "")


def _search(
    group: Sequence[Fold], models: Sequence[str], options: Mapping[str, Any], values: Mapping[str, Sequence[float]]
) -> Trials:
    """Decode with every choice of the weights."""
    from asr.decoders import Beam

    trials: Trials = []
    with Progress(transient=True) as progress:
        for weights in progress.track(_choices(values), description="decoding"):
            counts = []
            for fold in group:
                given: dict[str, Any] = {**options, **weights, **{model: fold.models[model] for model in models}}
                counts.append(fold.count(Beam(fold.tokenizer, **given)))
            trials.append((weights, counts))
    return trials


def _best_elsewhere(trials: Trials) -> Scored:
    """For each fold the weights that make the fewest errors on the others, and the errors on this one."""
    best = []
    for scored in range(len(trials[0][1])):
        weights, counts = min(trials, key=lambda trial: sum(c.errors for k, c in enumerate(trial[1]) if k != scored))
        best.append((weights, counts[scored]))
    return best


def _cross_rescored(group: Sequence[Fold], models: Sequence[str], searches: Sequence[Mapping[str, Any]]) -> Scored:
    """Rescore n-best lists, those of each fold by the search that was chosen for it, with cross-tuned weights."""
    known: dict[tuple[Any, ...], Scored] = {}
    for options in searches:
        key = tuple(options.items())
        known[key] = known.get(key) or _best_elsewhere(_rescore(group, models, options))
    return [known[tuple(options.items())][fold] for fold, options in enumerate(searches)]


def _rescore(group: Sequence[Fold], models: Sequence[str], options: Mapping[str, Any]) -> Trials:
    """Rescore the n-best lists of a search with every choice of the weights."""
    from asr.decoders import Rescored

    trials: Trials = [(weights, []) for weights in _choices(SECOND)]
    with Progress(transient=True) as progress:
        for fold in progress.track(group, description="rescoring"):
            search = {**options, **{model: fold.models[model] for model in models}}
            decoder = Rescored(fold.tokenizer, Remembered(fold.models["lstm"]), beam=search)
            lists = [(references, decoder.search(emissions)) for emissions, references in fold.speech.batches()]
            for weights, counts in trials:
                decoder.lm_weight, decoder.keep, decoder.word_score = weights.values()
                counts.append(ErrorCounts())
                for references, found in lists:
                    counts[-1] += count_words(references, [n_best[0].text for n_best in decoder.rescore(found)])
    return trials


class Remembered:
    """A language model that scores each sentence once."""

    def __init__(self, model: Any):
        self.model, self.unit, self.vocabulary = model, model.unit, model.vocabulary
        self.scores: dict[tuple[str, ...], float] = {}

    def score_batch(self, sentences: Sequence[tuple[str, ...]]) -> list[float]:
        new = [sentence for sentence in sentences if sentence not in self.scores]
        self.scores.update(zip(new, self.model.score_batch(new).tolist(), strict=True))
        return [self.scores[sentence] for sentence in sentences]


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
        decoder = Beam(fold.tokenizer, lm_weight=0.5, word_score=1.5, **options)
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
