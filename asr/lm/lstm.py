"""LSTM language models: the module, what it says of sentences, and its folder."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.layouts import for_kernel
from asr.errors import CheckpointError
from asr.lm import folder as folders
from asr.lm.base import SPECIAL, UNITS, Perplexity
from asr.lm.sampling import LONGEST, check_temperature, spell

UNKNOWN, BOS, EOS = range(3)
"""The ids of `SPECIAL`."""
NONE = -1
"""A target that does not count."""
WEIGHTS = "model.safetensors"
BATCH_TOKENS = 8192
"""Tokens, padding included, that are scored together."""
SOFTMAX_VALUES = 1 << 25
"""Log-probabilities that are held at a time: tokens × vocabulary."""


class Lstm(nn.Module):
    """A recurrent language model: p(word | all the words before it in the sentence).

    After Mikolov et al. (Interspeech 2010), with LSTM layers (Sundermeyer et al., Interspeech 2012) and dropout between
    the layers, not in time (Zaremba et al., arXiv 1409.2329). `<s>` is never predicted.

    Args:
        vocabulary: every word, at the index that is its id: `<unk>`, `<s>`, `</s>`, then the others; V of them.
        unit: `words` or `labels`.
        width: of the word vectors and of each layer.
        layers: how many.
        dropout: share of values dropped in training.
        tied: whether words are predicted with their own vectors (Press & Wolf, EACL 2017) or with a matrix beside them.
        metadata: how the model was made, in plain values.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        unit: str = "words",
        width: int = 512,
        layers: int = 2,
        dropout: float = 0.3,
        tied: bool = True,
        metadata: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.vocabulary, self.unit, self.tied, self.metadata = list(vocabulary), unit, tied, dict(metadata or {})
        self.ids = {word: k for k, word in enumerate(self.vocabulary) if k > EOS}
        self.embedding = nn.Embedding(len(self.vocabulary), width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, len(self.vocabulary))
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)
        if tied:
            self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """(B, T) ids, and the state before them → (B, T, width) hidden vectors, and the state after them."""
        hidden, state = self.lstm(for_kernel(self.dropout(self.embedding(tokens))), state)
        return self.dropout(hidden), state

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, width) hidden vectors → (…, V) log-probabilities of the word that follows, but for a constant."""
        logits = self.output(hidden).float()
        logits[..., BOS] = -torch.inf
        return logits

    def log_probs(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """(B, T) ids, and those that follow them, `NONE` in the padding → (N,) log p of the targets, row by row."""
        real = targets != NONE
        hidden, targets = self(inputs)[0][real], targets[real]
        size = max(1, SOFTMAX_VALUES // len(self.vocabulary))
        parts = zip(hidden.split(size), targets.split(size), strict=True)
        return torch.cat([-functional.cross_entropy(self.logits(h), t, reduction="none") for h, t in parts])

    def score_batch(self, sentences: Sequence[Sequence[str]], bos: bool = True, eos: bool = True) -> np.ndarray:
        """(S,) float64 natural log-probabilities of sentences; the options are those of `score`."""
        return np.array([scores.sum() for scores in self._word_log_probs(sentences, bos, eos)])

    def score(self, sentence: Sequence[str], bos: bool = True, eos: bool = True) -> float:
        """The natural log-probability of a sentence; words that are not in the vocabulary count as `<unk>`.

        Args:
            sentence: its words, without `<s>` and `</s>`.
            bos: whether it begins here, rather than after a word that is not known.
            eos: whether it ends here: then `</s>` is scored.
        """
        return float(self.score_batch([sentence], bos, eos)[0])

    def word_log_probs(self, sentence: Sequence[str], bos: bool = True, eos: bool = True) -> np.ndarray:
        """(words,) float64 natural log-probabilities, with `eos` that of the sentence's end as the last."""
        return self._word_log_probs([sentence], bos, eos)[0]

    @torch.no_grad()
    def _word_log_probs(self, sentences: Sequence[Sequence[str]], bos: bool, eos: bool) -> list[np.ndarray]:
        start, end = [BOS if bos else UNKNOWN], [EOS] if eos else []
        rows = [np.array([*start, *self.numbers(sentence), *end], np.int64) for sentence in sentences]
        order = sorted(range(len(rows)), key=lambda k: -len(rows[k]))
        found = [np.zeros(0)] * len(rows)
        while order:
            size = max(1, BATCH_TOKENS // len(rows[order[0]]))
            batch, order = order[:size], order[size:]
            inputs, targets = pad([rows[k] for k in batch])
            device = self.embedding.weight.device
            scores = self.log_probs(inputs.to(device), targets.to(device)).double().cpu().numpy()
            ends = np.cumsum([len(rows[k]) - 1 for k in batch])
            for k, part in zip(batch, np.split(scores, ends[:-1]), strict=True):
                found[k] = part
        return found

    def numbers(self, sentence: Sequence[str]) -> list[int]:
        """The ids of a sentence's words."""
        return [self.ids.get(word, UNKNOWN) for word in sentence]

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> Perplexity:
        """How well the model predicts sentences, counted as for n-gram models."""
        total = lost = 0.0
        tokens = oov = count = 0
        remaining = iter(sentences)
        while batch := list(itertools.islice(remaining, 4096)):
            for sentence, scores in zip(batch, self._word_log_probs(batch, True, True), strict=True):
                unknown = [k for k, word in enumerate(sentence) if word not in self.ids]
                total, tokens, count = total + float(scores.sum()), tokens + len(scores), count + 1
                lost, oov = lost + float(scores[unknown].sum()), oov + len(unknown)
        return Perplexity(total, lost, tokens, oov, count)

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0, seed: int = 0) -> list[str]:
        """`n` sentences drawn from the model, for a look at what it has learnt.

        Args:
            n: how many; the same seed draws the same ones, on the same machine.
            temperature: below 1 likelier sentences than the model's own, above 1 less likely ones.
            seed: of the draws.

        Raises:
            ConfigError: the temperature is 0 or less.
        """
        check_temperature(temperature)
        random = torch.Generator().manual_seed(seed)
        tokens, state = torch.full((n, 1), BOS), None
        drawn = torch.zeros((n, 0), dtype=torch.int64)
        while drawn.shape[1] < LONGEST and not bool((drawn == EOS).any(1).all()):
            hidden, state = self(tokens.to(self.embedding.weight.device), state)
            probabilities = (self.logits(hidden[:, -1]) / temperature).softmax(-1).cpu()
            tokens = torch.multinomial(probabilities, 1, generator=random)
            drawn = torch.cat([drawn, tokens], 1)
        sentences = [itertools.takewhile(lambda token: token != EOS, row) for row in drawn.tolist()]
        words = [[self.vocabulary[token] for token in sentence] for sentence in sentences]
        return [spell(sentence, self.unit, self.vocabulary) for sentence in words]

    def describe(self) -> str:
        """Sizes, unit and vocabulary, and how training went if it is known."""
        layers = self.lstm.num_layers
        size = f"{layers} layer{'s' if layers > 1 else ''} of {self.lstm.hidden_size}"
        parameters = sum(parameter.numel() for parameter in self.parameters()) / 1e6
        lines = [
            f"LSTM model of {self.unit}, {size}, {parameters:.2f} M parameters, "
            f"vocabulary {len(self.vocabulary):,} with {' '.join(SPECIAL)}"
        ]
        training = self.metadata.get("training", {})
        if "held_out_perplexity" in training:
            lines.append(
                f"best epoch {training['best_epoch']} of {training['epochs']}: perplexity "
                f"{training['held_out_perplexity']:.2f} with OOV on {training['held_out']:,} sentences held out"
            )
        return "\n".join(lines)

    def save(self, folder: str | Path) -> None:
        """Write a folder, whole or not at all; a language model that lies there is replaced.

        Raises:
            DataError: the place holds something else, or cannot be written.
        """
        from safetensors.torch import save

        header = {
            "kind": "lstm",
            "unit": self.unit,
            "width": self.lstm.hidden_size,
            "layers": self.lstm.num_layers,
            "dropout": float(self.dropout.p),
            "tied": self.tied,
            "metadata": dict(self.metadata),
        }
        weights = {name: value.cpu().contiguous() for name, value in self.state_dict().items()}
        if self.tied:
            del weights["output.weight"]

        def write(new: Path) -> None:
            (new / WEIGHTS).write_bytes(save(weights))  # a file of save_file could be read by its owner only
            (new / folders.VOCABULARY).write_bytes("".join(f"{word}\n" for word in self.vocabulary).encode())

        folders.save_folder(folder, header, write)

    @classmethod
    def load(cls, folder: str | Path) -> Lstm:
        """Open a saved model's folder, on the CPU, ready to score.

        Raises:
            CheckpointError: there is none, or a file of it is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        header = folders.read_header(folder)
        path = folder / folders.HEADER
        if header["kind"] != "lstm":
            raise CheckpointError(f"{path}: a language model of kind '{header['kind']}', not an LSTM model.")
        kinds = {"width": int, "layers": int, "dropout": float, "tied": bool, "metadata": dict}
        wrong = [key for key, kind in kinds.items() if type(header.get(key)) is not kind]
        if header.get("unit") not in UNITS:
            wrong.append("unit")
        if wrong or min(header["width"], header["layers"]) < 1 or not 0 <= header["dropout"] <= 1:
            raise CheckpointError(f"{path}: damaged: {(wrong or ['a size'])[0]} is wrong. Fetch it again.")
        file = folder / WEIGHTS
        try:
            weights = {name: value.float() for name, value in load_file(file).items()}
        except FileNotFoundError:
            raise CheckpointError(f"{file}: no such file: the model is not whole. Copy the whole folder.") from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: cannot be read ({error}). Fetch it again.") from None
        if "output.bias" not in weights or not all(bool(value.isfinite().all()) for value in weights.values()):
            raise CheckpointError(f"{file}: damaged: its values make no model. Fetch it again.")
        if header["tied"] and "embedding.weight" in weights:
            weights["output.weight"] = weights["embedding.weight"]
        vocabulary = folders.read_vocabulary(folder / folders.VOCABULARY, len(weights["output.bias"]))
        try:
            with torch.device("meta"):  # without initial values, which would be drawn from the random state of all
                model = cls(vocabulary, **{key: header[key] for key in ("unit", *kinds)})
            model.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            detail = str(error).splitlines()[-1].strip()
            raise CheckpointError(f"{file}: does not fit {path.name}. {detail} Copy the whole folder.") from None
        if model.tied:
            model.output.weight = model.embedding.weight
        model.eval().requires_grad_(False)
        return model


def pad(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """(B, T) inputs and (B, T) targets of sentences: each word, and the one after it; `NONE` in the padding.

    Args:
        rows: ids of each sentence, that of its start in front.
    """
    width = max([2, *map(len, rows)]) - 1
    inputs, targets = np.full((len(rows), width), EOS), np.full((len(rows), width), NONE)
    for k, row in enumerate(rows):
        inputs[k, : len(row) - 1], targets[k, : len(row) - 1] = row[:-1], row[1:]
    return torch.from_numpy(inputs), torch.from_numpy(targets)
