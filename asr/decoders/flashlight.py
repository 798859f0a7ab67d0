"""The beam search of flashlight-text, through torchaudio, with language models of KenLM."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from asr.decoders.bias import Bias, require_finite
from asr.decoders.greedy import Spelling, collect_words
from asr.decoders.scoring import load_model, read_lexicon
from asr.errors import ConfigError, DataError
from asr.lm.arpa import write_arpa
from asr.lm.base import SPECIAL, UNKNOWN
from asr.types import Emissions, Hypothesis

SPACE = " "
IMPOSSIBLE = -1e4
"""Stands for a log-probability of -∞, which flashlight cannot add up."""


class Flashlight:
    """CTC beam search by flashlight (Kahn et al., ICML 2022, arXiv 2201.12465), an optional dependency.

    With a lexicon or a word model it recognizes the words of the lexicon and ranks them by

        ln p(alignments) + lm_weight ln p(words) + word_score · words + unknown_score · unknown words

    where the model sees the utterance's beginning and end. Flashlight ends a word at a label of its own, so the
    tokenizer must have one for the space, which the last word does without; more spaces than words need cost nothing.
    Without lexicon and model it ranks sequences of labels by their alignments alone.

    Flashlight's n-best lists know times of labels only, which we read from the best alignment; times and confidences
    of words are then defined as in `Greedy`. It holds the GIL: threads do not help.

    Args:
        tokenizer: turns labels into text; label 0 is blank.
        beam: hypotheses kept after each frame.
        beam_threshold: how much worse than the best a hypothesis may be, in natural logarithms.
        beam_size_token: labels tried in a frame, the likeliest ones; `None`: all.
        nbest: hypotheses returned for each utterance.
        log_add: whether hypotheses sum over their alignments, as in `Beam`, or count the best one alone.
        lm: a word n-gram model: a KenLM binary, an ARPA file (plain or gzip), a folder written by `train_lm`, or the
            model itself.
        lm_weight: of its natural log-probabilities; KenLM computes with log10, so flashlight is told lm_weight · ln 10.
        lexicon: the words that can be recognized: a file with one in each line, or a list; `None` takes the model's,
            which a KenLM binary does not tell.
        unknown_score: what an unknown word earns, 0 or less: of those, flashlight knows only the beginnings of known
            words. `None`: nothing but the lexicon.
        word_score: what each word earns.
        blank_penalty, label_prior, prior_scale: what is taken off the emissions first, as in `Bias`.

    Raises:
        ConfigError: flashlight-text is not installed, an option is out of range, or does not fit the tokenizer.
    """

    def __init__(
        self,
        tokenizer: Spelling,
        beam: int = 100,
        beam_threshold: float = 20.0,
        beam_size_token: int | None = None,
        nbest: int = 1,
        log_add: bool = True,
        lm: Any = None,
        lm_weight: float = 0.5,
        lexicon: Any = None,
        unknown_score: float | None = None,
        word_score: float = 0.0,
        blank_penalty: float = 0.0,
        label_prior: Any = None,
        prior_scale: float = 0.3,
    ):
        self.arguments = {name: value for name, value in locals().items() if name != "self"}
        limits: dict[str, tuple[float | None, float]] = {
            "beam": (beam, 1),
            "nbest": (nbest, 1),
            "beam_size_token": (beam_size_token, 1),
        }
        limits |= {"beam_threshold": (beam_threshold, 0), "lm_weight": (lm_weight, 0)}
        for name, (value, least) in limits.items():
            if value is not None and value < least:
                raise ConfigError(f"decoder.{name}={value}: must be {least} or more.")
        if unknown_score is not None and unknown_score > 0:
            raise ConfigError(f"decoder.unknown_score={unknown_score}: must be 0 or less.")
        self.tokenizer, self.nbest, self.word_score = tokenizer, nbest, float(word_score)
        self.bias = Bias(tokenizer.labels, blank_penalty, label_prior, prior_scale)
        self.unknown_score = -math.inf if unknown_score is None else float(unknown_score)
        self.scale = lm_weight * math.log(10)
        self.has_words = lm is not None or lexicon is not None
        if not self.has_words and (word_score or unknown_score is not None):
            raise ConfigError("decoder.word_score, unknown_score: which words? Give decoder.lexicon= or decoder.lm=.")
        if self.has_words and SPACE not in tokenizer.labels:
            raise ConfigError(
                "decoder=flashlight: a lexicon or a word model needs a tokenizer with a label for the space, as "
                "tokenizer=characters has: flashlight ends every word at one. Use decoder=beam, or neither of them."
            )
        self.space = tokenizer.labels.index(SPACE) if self.has_words else 0
        options: dict[str, Any] = {
            "tokens": [str(label) for label in range(len(tokenizer.labels))],
            "blank_token": "0",
            "sil_token": str(self.space),
            "nbest": nbest,
            "beam_size": beam,
            "beam_size_token": beam_size_token,
            "beam_threshold": beam_threshold,
            "log_add": log_add,
            "lm_weight": self.scale,
            "word_score": self.word_score,
            "unk_score": self.word_score + self.unknown_score,
            "lexicon": None,
        }
        with TemporaryDirectory() as folder:
            model, words = _open_model(lm, Path(folder))
            if self.has_words:
                options["lexicon"] = self._write_lexicon(read_lexicon(lexicon), words, Path(folder))
            self.decoder = _build(options | {"lm": model})
        self.unknown = self.decoder.word_dict.get_index(UNKNOWN) if self.has_words else -1

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self.arguments), ()  # flashlight's own objects cannot be pickled

    def __call__(self, emissions: Emissions) -> list[list[Hypothesis]]:
        """(B, T, V) log-probabilities as NumPy → the n-best list of each utterance.

        Raises:
            DataError: an emission is not a number, or no label is possible in a frame.
        """
        arrays = emissions.numpy()
        rows = zip(np.asarray(arrays.log_probs), np.asarray(arrays.lengths), strict=True)
        return [self._decode(log_probs[:length], emissions.frame_seconds) for log_probs, length in rows]

    def _decode(self, log_probs: np.ndarray, frame_seconds: float) -> list[Hypothesis]:
        frames, labels = log_probs.shape
        require_finite(log_probs.max(-1))
        if labels != len(self.tokenizer.labels):
            raise DataError(f"decoder: emissions of {labels} labels, but there are {len(self.tokenizer.labels)}.")
        log_probs = self.bias(log_probs)
        padded = np.full((frames + 1, labels), IMPOSSIBLE, np.float32)
        padded[:frames] = np.maximum(log_probs, IMPOSSIBLE)
        padded[frames, self.space] = 0  # the end of the utterance is the end of a word
        size = frames + self.has_words
        results = self.decoder.decoder.decode(padded.ctypes.data, size, labels)[: self.nbest]
        return [self._hypothesis(result, log_probs, frame_seconds) for result in results]

    def _hypothesis(self, result: Any, log_probs: np.ndarray, frame_seconds: float) -> Hypothesis:
        frames, score = len(log_probs), float(result.score)
        path = np.array(result.tokens[1 : frames + 1], int)  # before and behind it are flashlight's own
        if self.has_words and result.tokens[frames + 1] != self.space:
            score -= IMPOSSIBLE  # it ends in mid-word, for want of anything better
        starts = np.flatnonzero(np.diff(path, prepend=-1))
        ends = np.append(starts[1:], frames)
        peaks = np.maximum.reduceat(log_probs[np.arange(frames), path], starts) if frames else np.zeros(0)
        keep = path[starts] != 0
        labels = path[starts][keep].tolist()
        words = collect_words(labels, starts[keep], ends[keep], peaks[keep], self.tokenizer, frame_seconds)
        text = " ".join(self.tokenizer.decode(labels).split())
        spoken = [word for word in result.words if word >= 0]
        unknown = sum(word == self.unknown for word in spoken)
        lm_score = self.scale * result.lmScore
        bonus = self.word_score * len(spoken) + (self.unknown_score * unknown if unknown else 0.0)
        return Hypothesis(text, tuple(labels), score, words, score - lm_score - bonus, lm_score)

    def _write_lexicon(self, given: list[str] | None, vocabulary: list[str] | None, folder: Path) -> str:
        """Write a file in flashlight's format: on each line a word and the labels that spell it."""
        if given is None and vocabulary is None:
            raise ConfigError("decoder.lexicon: which words? A KenLM binary does not tell them: give decoder.lexicon=.")
        if given is not None:
            for word in given:
                if unknown := self.tokenizer.unknown(word):
                    raise ConfigError(f"decoder.lexicon: '{word}' cannot be spelled: no label has '{unknown[0]}'.")
        known = (word for word in vocabulary or () if word not in SPECIAL and not self.tokenizer.unknown(word))
        words = list(known) if given is None else given
        if not words:
            raise ConfigError("decoder.lexicon, lm: there is no word that the tokenizer's labels can spell.")
        with (folder / "lexicon.txt").open("w", encoding="utf-8", newline="\n") as file:
            for word in words:
                print(word, *self.tokenizer.encode(word), self.space, file=file)
        return file.name


def _open_model(lm: Any, folder: Path) -> tuple[str | None, list[str] | None]:
    """The file that KenLM reads, and the model's vocabulary if it is known."""
    if lm is None:
        return None, None
    start = b""
    if isinstance(lm, str | Path) and Path(lm).is_file():
        with open(lm, "rb") as file:
            start = file.read(7)
    if start == b"mmap lm":
        return str(lm), None
    model = load_model(lm, "lm", "words")
    assert model
    if start and not start.startswith(b"\x1f\x8b"):
        return str(lm), model.vocabulary
    write_arpa(model, folder / "lm.arpa")
    return str(folder / "lm.arpa"), model.vocabulary


def _build(options: dict[str, Any]) -> Any:
    try:
        from torchaudio.models.decoder import ctc_decoder
    except RuntimeError as error:
        raise ConfigError(
            f"decoder=flashlight needs the package flashlight-text ({error.__cause__}). "
            "Install it: pip install 'asr-pipeline[flashlight]'. It has no wheels for Python 3.13 and newer."
        ) from None
    try:
        return ctc_decoder(**options)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"decoder.lm: {options['lm']}: KenLM cannot read it ({reason}). Fetch or build it again."
        ) from None
