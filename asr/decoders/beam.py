"""CTC prefix beam search with language models, a lexicon and hotwords, offline and streaming."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from asr.decoders.bias import Bias, require_finite
from asr.decoders.greedy import Spelling, collect_words
from asr.decoders.hotwords import build_hotwords
from asr.decoders.lexicon import OUTSIDE, ROOT
from asr.decoders.links import LINK, drop_links, settled_link, trace
from asr.decoders.prefix import CANDIDATE, NEVER, PREFIX
from asr.decoders.scoring import (
    Scoring,
    arrays_of,
    check_unit,
    compile_words,
    is_unmarked,
    label_numbers,
    load_model,
    read_hotwords,
    read_lexicon,
)  # fmt: skip
from asr.decoders.search import end, search
from asr.errors import ConfigError, DataError
from asr.machine import processors
from asr.types import Emissions, Hypothesis, Partial, Word

OPEN, CLOSED = {"beam_threshold": 20.0, "label_threshold": 6.0}, {"beam_threshold": 30.0, "label_threshold": 20.0}
"""How much is pruned with an open and with a closed vocabulary, if it is not said."""


class Beam:
    """CTC prefix beam search (Graves & Jaitly, ICML 2014; with language models: Hannun et al., arXiv 1408.2873).

    A prefix is a sequence of labels. Its acoustic score sums over all of its alignments that the pruning leaves; it
    earns beside that

        lm_weight ln p(words) + label_lm_weight ln p(labels) + word_score · words + label_score · labels
        + unknown_score · unknown words + the weights of the hotwords in it

    where both models see a beginning and, when the utterance ends, an end. Between words one space counts, and before
    them none, however often the model emits it. While a word is under way, the search ranks
    its prefix as if it became the likeliest word that goes on so; hotwords under way lend a part of their weight.
    Three rules keep it fast. In a frame, labels that are less likely than the likeliest by more than `label_threshold`
    count as impossible, blank never; where that leaves only blank, nothing is ranked and nothing dropped, so silence
    costs almost nothing. Prefixes worse than the best by more than `beam_threshold` are dropped, and of the others
    those beyond the `beam` best.

    Times and confidences are those of the best alignment of the hypothesis, defined as in `Greedy`.

    The search is compiled by numba, at its first use in some ten seconds, then kept on disk (`asr.jit`); it holds no
    GIL, and a batch is decoded by as many threads as there are processors. The alternative, a batch in torch's
    tensors, was slower on a CPU with half of its work left out: 12 to 31 ms for 500 frames, where this takes 9.

    Args:
        tokenizer: turns labels into text; label 0 is blank.
        beam: prefixes kept after each frame.
        beam_threshold: how much worse than the best a prefix may be, in natural logarithms. `None`: 20, and 30 where
            the vocabulary is closed, for there the best may lead nowhere.
        label_threshold: how much less likely than a frame's likeliest a label may be. `None`: 6, and likewise 20.
        nbest: hypotheses returned for each utterance, their texts all different: of prefixes that spell the same, the
            best stands for all.
        recombine: whether of two prefixes with the same future (last label, unfinished word, states of the models and
            hotwords) the one that is worse by now is dropped. It makes room for others that really differ: a better
            best hypothesis, in less time, but lists of them lack variety. `None`: if `nbest` is 1.
        lm: a word n-gram model: a folder written by `train_lm`, an ARPA file (plain or gzip), or the model itself.
        lm_weight: of its log-probabilities.
        label_lm: an n-gram model over the tokenizer's labels, likewise.
        label_lm_weight: of its log-probabilities.
        lexicon: the words that are known: a file with one in each line, or a list; `None` takes the model's, which an
            open vocabulary has in any case.
        open_vocabulary: whether words outside the lexicon may be recognized at all.
        unknown_score: what each of them earns, 0 or less.
        word_score: what each word earns.
        label_score: what each label earns.
        hotwords: phrases to listen for: a list, a mapping to weights, or a file with a phrase in each line, its weight
            behind a tab if it has its own. Their words count as known.
        hotword_weight: of a phrase without a weight of its own, in natural logarithms.
        blank_penalty, label_prior, prior_scale: what is taken off the emissions first, as in `Bias`.
        threads: that decode a batch; `None`: as many as there are processors.

    Raises:
        ConfigError: an option is out of range, or a model, word or phrase does not fit the tokenizer.
    """

    def __init__(
        self,
        tokenizer: Spelling,
        beam: int = 100,
        beam_threshold: float | None = None,
        label_threshold: float | None = None,
        nbest: int = 1,
        recombine: bool | None = None,
        lm: Any = None,
        lm_weight: float = 0.5,
        label_lm: Any = None,
        label_lm_weight: float = 0.5,
        lexicon: Any = None,
        open_vocabulary: bool = True,
        unknown_score: float = -5.0,
        word_score: float = 0.0,
        label_score: float = 0.0,
        hotwords: Any = None,
        hotword_weight: float = 5.0,
        blank_penalty: float = 0.0,
        label_prior: Any = None,
        prior_scale: float = 0.3,
        threads: int | None = None,
    ):
        _check_range(beam=(beam, 1), nbest=(nbest, 1), lm_weight=(lm_weight, 0), label_lm_weight=(label_lm_weight, 0))
        default = OPEN if open_vocabulary else CLOSED
        beam_threshold = default["beam_threshold"] if beam_threshold is None else beam_threshold
        label_threshold = default["label_threshold"] if label_threshold is None else label_threshold
        _check_range(beam_threshold=(beam_threshold, 1e-9), label_threshold=(label_threshold, 0))
        _check_range(threads=(threads or 1, 1))
        scores = {"unknown_score": unknown_score, "word_score": word_score, "label_score": label_score}
        for name, value in {**scores, "hotword_weight": hotword_weight}.items():
            if not math.isfinite(value) or (name == "unknown_score" and value > 0):
                least = "0 or less" if name == "unknown_score" else "a finite number"
                raise ConfigError(f"decoder.{name}={value}: must be {least}.")
        self.tokenizer, self.nbest = tokenizer, nbest
        self.bias = Bias(tokenizer.labels, blank_penalty, label_prior, prior_scale)
        self.threads = threads or processors()
        self.spellings = ["", *(tokenizer.decode([label]).strip() for label in range(1, len(tokenizer.labels)))]
        words, labels = load_model(lm, "lm", "words"), load_model(label_lm, "label_lm", "labels")
        given, phrases = read_lexicon(lexicon), read_hotwords(hotwords, hotword_weight, tokenizer, self.spellings)
        if words and is_unmarked(lm):
            check_unit(words, self.spellings, tokenizer.word_starts)
        vocabulary = compile_words(
            given, phrases, words, self.spellings, tokenizer, open_vocabulary, lm_weight, float(unknown_score)
        )
        if not open_vocabulary and not vocabulary["knows_words"]:
            raise ConfigError("decoder.open_vocabulary=false: which words? Give decoder.lexicon= or decoder.lm=.")
        self._contexts = tuple(model.start if model else 0 for model in (words, labels))
        self.scoring = Scoring(
            starts=np.array(tokenizer.word_starts, np.bool_),
            spelled=np.concatenate([[0], np.cumsum([len(spelling) for spelling in self.spellings])]).astype(np.int32),
            codes=np.frombuffer("".join(self.spellings).encode("utf-32-le"), np.int32).copy(),
            **vocabulary,
            lm=arrays_of(words),
            label_lm=arrays_of(labels),
            label_words=label_numbers(labels, tokenizer),
            hotwords=build_hotwords(phrases),
            open_vocabulary=bool(open_vocabulary),
            lm_weight=float(lm_weight) if words else 0.0,
            label_lm_weight=float(label_lm_weight) if labels else 0.0,
            word_score=float(word_score),
            label_score=float(label_score),
            unknown_score=float(unknown_score),
            beam=int(beam),
            beam_threshold=float(beam_threshold),
            label_threshold=float(label_threshold),
            recombine=bool(nbest == 1 if recombine is None else recombine),
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for array in (*self.scoring.lm, *self.scoring.label_lm):
            array.flags.writeable = False  # copying forgets it; see `arrays_of`

    def __call__(self, emissions: Emissions) -> list[list[Hypothesis]]:
        """(B, T, V) log-probabilities as NumPy → the n-best list of each utterance.

        Raises:
            DataError: an emission is not a number, or no label is possible in a frame.
        """
        utterances = [np.asarray(log_probs)[:length] for log_probs, length in zip(*_rows(emissions), strict=True)]

        def decode(log_probs: np.ndarray) -> list[Hypothesis]:
            state = self.start()
            self._take(log_probs, emissions.frame_seconds, state)
            return self.finish(state)

        if self.threads == 1 or len(utterances) == 1:
            return [decode(log_probs) for log_probs in utterances]
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(decode, utterances))

    def start(self) -> BeamState:
        """The state of a stream of which nothing was heard."""
        beam = self.scoring.beam
        state = BeamState(np.zeros(beam, PREFIX), np.zeros(beam, PREFIX), np.zeros(64 * beam, LINK))
        first = state.prefixes[0]
        first["key"], first["parent"], first["label"] = 1, 0, 0
        first["voiced"] = first["best_voiced"] = NEVER
        first["lm"], first["label_lm"] = self._contexts
        first["node"] = ROOT if self.scoring.knows_words else OUTSIDE
        first["blank_link"] = first["voiced_link"] = -1
        return state

    def step(self, emissions: Emissions, state: BeamState) -> Partial:
        """Take the next (1, T, V) log-probabilities of a stream; the state is changed.

        Returns:
            the words that no prefix left in the beam can change any more, each once, and the rest as it looks now.
        """
        known = len(state.words)
        self._take(emissions.single(), emissions.frame_seconds, state)
        self._settle(state)
        words = tuple(state.words[known:])
        prefixes = state.prefixes[: state.count]
        best = prefixes[np.argmax(np.logaddexp(prefixes["blank"], prefixes["voiced"]) + prefixes["bonus"])]
        tail = [*state.pending["label"].tolist(), *self._tail(state, best)["label"].tolist()]
        return Partial(words, " ".join(self.tokenizer.decode(tail).split()))

    def finish(self, state: BeamState) -> list[Hypothesis]:
        """End the stream: the n-best list of all of it."""
        prefixes = state.prefixes[: state.count]
        acoustic = np.logaddexp(prefixes["blank"], prefixes["voiced"])
        bonus, lm_score = np.empty(state.count), np.empty(state.count)
        complete = end(prefixes, state.count, self.scoring, bonus, lm_score)
        score = acoustic + bonus
        found: dict[str, Hypothesis] = {}
        for k in np.argsort(-score, kind="stable"):
            if len(found) == self.nbest or score[k] == NEVER:
                break
            scores = (float(score[k]), float(acoustic[k]), float(lm_score[k]))
            hypothesis = self._hypothesis(state, prefixes[k], complete, *scores)
            found.setdefault(hypothesis.text, hypothesis)
        # or nothing that is possible is allowed
        return [*found.values()] or [Hypothesis("", (), NEVER, (), NEVER, 0.0)]

    def _take(self, log_probs: np.ndarray, frame_seconds: float, state: BeamState) -> None:
        peaks = log_probs.max(-1) if len(log_probs) else np.zeros(0)
        require_finite(peaks, state.frame)
        if log_probs.shape[1] != len(self.spellings):
            raise DataError(f"decoder: emissions of {log_probs.shape[1]} labels, but there are {len(self.spellings)}.")
        # a read-only array is another type to numba, and would be compiled for anew
        log_probs = np.require(self.bias(log_probs), np.float32, ["C", "W"])
        state.frame_seconds = frame_seconds
        candidates = np.empty(4 * self.scoring.beam + log_probs.shape[1], CANDIDATE)
        while len(log_probs):
            room = 2 * self.scoring.beam
            if state.used + room > len(state.links):
                self._settle(state)
                if state.used + room > len(state.links) // 2:  # the prefixes have long had nothing in common
                    state.links = np.concatenate([state.links, np.zeros_like(state.links)])
            taken, state.count, state.used = search(
                log_probs, state.frame, self.scoring, state.prefixes, state.spare, candidates, state.count,
                state.links, state.used,
            )  # fmt: skip
            state.frame += taken
            log_probs = log_probs[taken:]

    def _settle(self, state: BeamState) -> None:
        """Move the labels that all prefixes share out of the search, and complete words among them into `words`."""
        prefixes = state.prefixes[: state.count]
        settled = settled_link(prefixes, state.count, state.links, state.used)
        if settled >= 0:
            path = trace(settled, state.links)
            state.labels.extend(path["label"].tolist())
            state.pending = np.concatenate([state.pending, path])
        state.used = drop_links(prefixes, state.count, state.links, state.used, settled)
        starts = np.flatnonzero(self.scoring.starts[state.pending["label"]])
        if len(starts) and starts[-1]:  # the last word may go on
            state.words.extend(self._words(state.pending[: starts[-1]], state))
            state.before = int(state.pending[starts[-1] - 1]["end"])
            state.pending = state.pending[starts[-1] :]

    def _tail(self, state: BeamState, prefix: np.void) -> np.ndarray:
        """The labels of a prefix's best alignment that are not settled."""
        if not prefix["label"]:
            return np.zeros(0, LINK)
        blank = prefix["best_blank"] >= prefix["best_voiced"]
        end = prefix["blank_end"] if blank else state.frame
        kind = "blank" if blank else "voiced"
        last = (-1, prefix["label"], prefix[f"{kind}_start"], end, prefix[f"{kind}_peak"])
        before = trace(prefix[f"{kind}_link"], state.links)
        return np.concatenate([before, np.array([last], LINK)])

    def _hypothesis(
        self, state: BeamState, prefix: np.void, complete: bool, score: float, acoustic: float, lm: float
    ) -> Hypothesis:
        path = np.concatenate([state.pending, self._tail(state, prefix)])
        if not complete:  # a closed vocabulary, and no prefix that ends with a word: its last one is left out
            starts = np.flatnonzero(self.scoring.starts[path["label"]])
            path = path[: starts[-1] if len(starts) else 0]
        labels = (*state.labels[: len(state.labels) - len(state.pending)], *path["label"].tolist())
        words = (*state.words, *self._words(path, state))
        text = " ".join(self.tokenizer.decode(list(labels)).split())
        return Hypothesis(text, labels, score, words, acoustic, lm)

    def _words(self, path: np.ndarray, state: BeamState) -> tuple[Word, ...]:
        labels, frames = path["label"].tolist(), (path["start"], path["end"])
        return collect_words(labels, *frames, path["peak"], self.tokenizer, state.frame_seconds, state.before)


@dataclass
class BeamState:
    """Where a stream is; belongs to the `Beam` that made it."""

    prefixes: np.ndarray
    spare: np.ndarray
    links: np.ndarray
    count: int = 1
    used: int = 0
    frame: int = 0
    frame_seconds: float = 0.0
    labels: list[int] = field(default_factory=list)
    """The labels that are settled."""
    words: list[Word] = field(default_factory=list)
    """The words among them that are complete."""
    before: int = -1
    """The frame after the last of them."""
    pending: np.ndarray = field(default_factory=lambda: np.zeros(0, LINK))
    """The settled labels of a word that may go on."""


def _rows(emissions: Emissions) -> tuple[Any, Any]:
    arrays = emissions.numpy()
    return arrays.log_probs, np.asarray(arrays.lengths)


def _check_range(**limits: tuple[float, float]) -> None:
    for name, (value, least) in limits.items():
        if not least <= value < math.inf:
            words = "above 0" if 0 < least < 1 else f"{least} or more"
            raise ConfigError(f"decoder.{name}={value}: must be {words}, and finite.")
