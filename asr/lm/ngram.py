"""Back-off n-gram models as flat arrays: a trie that compiled code can walk, loaded by mapping files into memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from asr.errors import CheckpointError
from asr.jit import jit
from asr.lm import folder as folders
from asr.lm.base import SPECIAL, UNITS, Perplexity

FLOOR = -100.0
"""The lowest log10 probability: what KenLM, too, gives to a word that a model cannot predict."""
ARRAYS = {"words": np.int32, "log_probs": np.float32, "backoffs": np.float32, "first": np.int32, "suffixes": np.int32}
"""What a saved model consists of, a file each."""


@jit
def step(first, words, log_probs, backoffs, suffixes, state, word):
    """One word of a sentence: (natural log p(word | state), next state).

    Args:
        first, words, log_probs, backoffs, suffixes: the arrays of an `Ngram`.
        state: the node of the context, of an order below the model's; 0 knows no context.
        word: a word's id.
    """
    log_prob = 0.0
    while state > 0:
        low, high = first[state], first[state + 1]
        while low < high:
            middle = (low + high) >> 1
            if words[middle] < word:
                low = middle + 1
            else:
                high = middle
        if low < first[state + 1] and words[low] == word:
            break
        log_prob += backoffs[state]
        state = suffixes[state]
    child = low if state > 0 else word + 1
    return log_prob + log_probs[child], (child if child < len(backoffs) else suffixes[child])


@jit
def _score(first, words, log_probs, backoffs, suffixes, state, sentence, scores):
    for k in range(len(sentence)):
        scores[k], state = step(first, words, log_probs, backoffs, suffixes, state, sentence[k])


@dataclass(frozen=True, eq=False)
class Ngram:
    """An n-gram model with back-off: p(w | h) is that of the node "h w", or, if there is none, backoff(h) · p(w | h').

    (h' is h less its first word, or than its first words: the longest suffix that is in the model.)

    Every n-gram is a node, under the node of its context (all its words but the last). Node 0 is the empty context,
    nodes 1 … V are the unigrams in the order of their words' ids, so word w is node w + 1; then come orders 2, 3, …,
    each sorted by (node of the context, word). N nodes, M of them of an order below the model's. The arrays are
    read-only and contiguous.
    """

    words: np.ndarray
    """(N,) int32: the id of each node's last word, -1 for node 0."""
    log_probs: np.ndarray
    """(N,) float32: natural log p(word | context), 0 for node 0."""
    backoffs: np.ndarray
    """(M,) float32: natural log of what the node, as a context, leaves to its suffix; 0 for node 0."""
    first: np.ndarray
    """(M + 1,) int32: the nodes first[i] … first[i + 1] - 1 are the children of node i."""
    suffixes: np.ndarray
    """(N,) int32: the node of the longest proper suffix that is in the model; 0 for unigrams and node 0."""
    order: int
    vocabulary: list[str]
    """Every word, at the index that is its id: `<unk>`, `<s>`, `</s>`, then the others."""
    unit: str = "words"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # one type for all models, in memory or mapped, so that compiled code is compiled once
        for name, kind in ARRAYS.items():
            array = np.ascontiguousarray(getattr(self, name), kind).view(np.ndarray)
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What `step` takes, in its order."""
        return self.first, self.words, self.log_probs, self.backoffs, self.suffixes

    @property
    def start(self) -> int:
        """The state in which a sentence starts: the node of `<s>`."""
        return 2 if self.order > 1 else 0

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word."""
        return {word: i for i, word in enumerate(self.vocabulary)}

    @cached_property
    def ends(self) -> list[int]:
        """The number of nodes up to each order, from order 0 (node 0 alone) to the model's own."""
        ends = [1]
        while len(ends) <= self.order:
            ends.append(int(self.first[ends[-1]]))
        return ends

    @property
    def counts(self) -> list[int]:
        """The number of n-grams of each order, from 1."""
        return np.diff(self.ends).tolist()

    def word_log_probs(self, sentence: Sequence[str], bos: bool = True, eos: bool = True) -> np.ndarray:
        """(words,) float64 natural log-probabilities, with `eos` that of the sentence's end as the last."""
        ids = [self.ids.get(word, 0) for word in sentence] + ([2] if eos else [])
        scores = np.empty(len(ids))
        _score(*self.arrays, self.start if bos else 0, np.array(ids, np.int32), scores)
        return scores

    def score(self, sentence: Sequence[str], bos: bool = True, eos: bool = True) -> float:
        """The natural log-probability of a sentence; words that are not in the vocabulary count as `<unk>`.

        Args:
            sentence: its words, without `<s>` and `</s>`.
            bos: whether it begins here, rather than after words that are not known.
            eos: whether it ends here: then `</s>` is scored.
        """
        return float(self.word_log_probs(sentence, bos, eos).sum())

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> Perplexity:
        """How well the model predicts sentences, as KenLM's `query` counts it."""
        total = lost = 0.0
        tokens = oov = count = 0
        for sentence in sentences:
            scores = self.word_log_probs(sentence)
            unknown = [k for k, word in enumerate(sentence) if not self.ids.get(word, 0)]
            total, tokens, count = total + float(scores.sum()), tokens + len(scores), count + 1
            lost, oov = lost + float(scores[unknown].sum()), oov + len(unknown)
        return Perplexity(total, lost, tokens, oov, count)

    def sample(self, n: int, temperature: float = 1.0, seed: int = 0) -> list[str]:
        """`n` sentences drawn from the model: `asr.lm.sampling.sample`."""
        from asr.lm.sampling import sample

        return sample(self, n, temperature, seed)

    def describe(self) -> str:
        """Order, unit, vocabulary, and for each order its n-grams and, if we trained it, its discounts."""
        vocabulary = f"vocabulary {len(self.vocabulary):,} with {' '.join(SPECIAL)}"
        lines = [f"{self.order}-gram model of {self.unit}, {vocabulary}"]
        training = self.metadata.get("training", {})
        discounts = training.get("discounts", [])
        for n, count in enumerate(self.counts, 1):
            line = f"{n}-grams {count:>12,}"
            if n <= len(discounts):
                line += "   discounts " + " ".join(f"{d:.6f}" for d in discounts[n - 1])
                if n in training.get("fallback", ()):
                    line += " (fallback: too little text, or text too regular, to estimate them)"
            lines.append(line)
        return "\n".join(lines)

    @classmethod
    def load(cls, path: str | Path) -> Ngram:
        """Open a saved model's folder, or read an ARPA file, plain or gzipped.

        Raises:
            CheckpointError: there is nothing, or a file of the folder is missing or damaged.
            DataError: the ARPA file is damaged, or the file is none.
        """
        path = Path(path)
        if path.is_dir():
            return cls._open(path)
        if not path.exists():
            raise CheckpointError(
                f"{path}: no such language model. Give the folder that train_lm wrote, or an ARPA file."
            )
        from asr.lm.arpa import read_arpa

        return read_arpa(path)

    def save(self, folder: str | Path) -> None:
        """Write a folder, whole or not at all; a language model that lies there is replaced.

        Raises:
            DataError: the place holds something else, or cannot be written.
        """
        header = {
            "kind": "ngram",
            "unit": self.unit,
            "order": self.order,
            "counts": self.counts,
            "metadata": dict(self.metadata),
        }

        def write(new: Path) -> None:
            for name in ARRAYS:
                np.save(new / f"{name}.npy", getattr(self, name))
            (new / folders.VOCABULARY).write_bytes("".join(f"{word}\n" for word in self.vocabulary).encode())

        folders.save_folder(folder, header, write)

    @classmethod
    def _open(cls, folder: Path) -> Ngram:
        header = folders.read_header(folder)
        path = folder / folders.HEADER
        if header["kind"] != "ngram":
            raise CheckpointError(f"{path}: a language model of kind '{header['kind']}', not an n-gram model.")
        counts, order = header.get("counts"), header.get("order")
        if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
            raise CheckpointError(f"{path}: damaged: 'counts' must be a list of numbers. Fetch it again.")
        if len(counts) != order or header.get("unit") not in UNITS or not isinstance(header.get("metadata"), dict):
            raise CheckpointError(f"{path}: damaged: 'order', 'unit' or 'metadata' is wrong. Fetch it again.")
        nodes, contexts = 1 + sum(counts), 1 + sum(counts[:-1])
        lengths = {"backoffs": contexts, "first": contexts + 1}
        arrays = {name: _read_array(folder / f"{name}.npy", lengths.get(name, nodes)) for name in ARRAYS}
        vocabulary = folders.read_vocabulary(folder / folders.VOCABULARY, counts[0])
        model = cls(**arrays, order=order, vocabulary=vocabulary, unit=header["unit"], metadata=header["metadata"])
        model._check(folder)
        return model

    def _check(self, folder: Path) -> None:
        """See that `step` can never leave the arrays or go in circles, whatever the files hold."""
        nodes, size = np.arange(len(self.words), dtype=np.int32), len(self.vocabulary)
        good = {
            "first": self.first[0] == 1 and self.first[-1] == len(nodes) and bool((np.diff(self.first) >= 0).all()),
            "words": np.array_equal(self.words[1 : size + 1], nodes[:size]) and bool((self.words < size).all()),
            "suffixes": self.suffixes[0] == 0 and bool((self.suffixes[1:] < nodes[1:]).all())
            and bool((self.suffixes >= 0).all()) and bool((self.suffixes < len(self.backoffs)).all()),
            "log_probs": bool((self.log_probs <= 0).all()) and bool(np.isfinite(self.log_probs).all()),
            "backoffs": bool(np.isfinite(self.backoffs).all()),
        }  # fmt: skip
        good["first"] = good["first"] and int(self.first[1]) == size + 1
        for name, is_good in good.items():
            if not is_good:
                raise CheckpointError(f"{folder / name}.npy: damaged: its values make no model. Fetch it again.")


def _read_array(path: Path, length: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file: the model is not whole. Copy the whole folder.") from None
    except (OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}). Fetch it again.") from None
    if array.dtype != ARRAYS[path.stem] or array.shape != (length,):
        raise CheckpointError(
            f"{path}: {length:,} values of {np.dtype(ARRAYS[path.stem])} are expected, found {array.dtype} of shape "
            f"{array.shape}. Its files are not of one model: copy the whole folder."
        )
    return array
