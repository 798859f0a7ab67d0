"""The training of LSTM language models: sentences → batches → Lightning → the weights of the best epoch."""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from asr.data.sampler import BucketSampler
from asr.errors import ConfigError, DataError
from asr.lm.base import SPECIAL
from asr.lm.lstm import BOS, EOS, UNKNOWN, Lstm, pad
from asr.machine import choose_for_trainer
from asr.plugins import config_names, instantiate

# Lightning's advertisements, and its wish for more processes to read what lies in memory
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*does not have many workers.*")
warnings.filterwarnings("ignore", ".*LeafSpec.*")
warnings.filterwarnings("ignore", ".*have no `val_dataloader`.*")  # nothing is held out


class LstmTraining:
    """Trains an `Lstm` on sentences, by Lightning, and keeps the epoch that predicts held-out sentences best.

    Each sentence stands alone: it begins with `<s>` and no memory. An epoch's batches hold sentences of similar length;
    its loss is the negative log-likelihood of a token, in which every token of the text counts the same, padding not at
    all. With the same seed the CPU gives the same weights.

    Args:
        width: of the word vectors and of each layer.
        layers: how many.
        dropout: share of values dropped between them in training.
        tied: whether words are predicted with their own vectors, which halves a small model.
        min_count: words seen fewer times become `<unk>`, so that the model learns what to expect of unknown ones.
        epochs: times that the text is gone through.
        batch_tokens: most tokens of a batch, padding included; one sentence alone may exceed it.
        held_out: share of the sentences that are not trained on but choose the best epoch; 0 keeps the last epoch.
        seed: of the weights, of dropout, of the batches, and of which sentences are held out.
        optimizer: a config of that group; `None`: adamw.
        schedule: likewise; `None`: onecycle.
        trainer: likewise, for one device; `None`: auto. Other keys of `lightning.Trainer` pass through.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        width: int = 512,
        layers: int = 2,
        dropout: float = 0.3,
        tied: bool = True,
        min_count: int = 2,
        epochs: int = 20,
        batch_tokens: int = 512,
        held_out: float = 0.05,
        seed: int = 0,
        optimizer: Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
        trainer: Mapping[str, Any] | None = None,
    ):
        counts = {"width": width, "layers": layers, "min_count": min_count, "epochs": epochs}
        for name, value in {**counts, "batch_tokens": batch_tokens}.items():
            if value < 1:
                raise ConfigError(f"lm.{name}={value}: must be 1 or more.")
        for name, share in {"dropout": dropout, "held_out": held_out}.items():
            if not 0 <= share < 1:
                raise ConfigError(f"lm.{name}={share}: must be a share, 0 or more and below 1.")
        self.width, self.layers, self.dropout, self.tied, self.min_count = width, layers, dropout, tied, min_count
        self.epochs, self.batch_tokens, self.held_out, self.seed = epochs, batch_tokens, held_out, seed
        self.optimizer = dict(optimizer or _config("optimizer", "adamw"))
        self.schedule = dict(schedule or _config("schedule", "onecycle"))
        self.trainer = dict(trainer or _config("trainer", "auto"))
        if not held_out and self.schedule["_target_"].endswith(".plateau"):
            raise ConfigError("lm.schedule: plateau has nothing to watch with lm.held_out=0. Take another schedule.")

    def fit(
        self, sentences: Iterable[Sequence[str]], unit: str = "words", metadata: Mapping[str, Any] | None = None
    ) -> Lstm:
        """Learn a model; its metadata say how it went, under `training`.

        Raises:
            DataError: there are no sentences, or too few to hold some out, or `<s>` or `</s>` is in one.
            ConfigError: no word is seen often enough, or an option of optimizer, schedule or trainer does not fit.
        """
        started = time.monotonic()
        trainer = self._trainer()
        text = _Text.read(sentences)
        held, rest = self._split(len(text))
        vocabulary = self._vocabulary(text, rest)
        data = _Sentences(text, vocabulary)
        L.seed_everything(self.seed, verbose=False)
        model = Lstm(vocabulary, unit, self.width, self.layers, self.dropout, self.tied)
        training, held_out = self._loader(data, rest), self._loader(data, held)
        steps = self.epochs * math.ceil(len(training) / trainer.accumulate_grad_batches)
        tokens = int(data.lengths[rest].sum())
        module = LanguageModelling(model, self.optimizer, self.schedule, steps, tokens / len(training))
        print(
            f"training    {len(rest):,} sentences, {tokens - len(rest):,} {unit}, {len(held):,} sentences held out\n"
            f"model       {model.describe()}"
        )
        try:
            trainer.fit(module, training, held_out if len(held) else None)
        except SystemExit:
            if not trainer.interrupted or module.best is None:
                raise
            print("interrupted: the best epoch so far is kept")
        if module.best is not None:
            model.load_state_dict(module.best)
        model.metadata = dict(metadata or {}) | {
            "training": {
                **{name: getattr(self, name) for name in ("min_count", "epochs", "batch_tokens", "seed")},
                "optimizer": self.optimizer,
                "schedule": self.schedule,
                "sentences": len(rest),
                "tokens": tokens,
                "held_out": len(held),
                **({"best_epoch": module.best_epoch, "held_out_perplexity": module.least} if len(held) else {}),
                "seconds": round(time.monotonic() - started, 1),
            }
        }
        return model.cpu().eval().requires_grad_(False)

    def _trainer(self) -> L.Trainer:
        options = choose_for_trainer(self.trainer)
        for name in ("max_epochs", "max_steps"):
            if name in options:
                raise ConfigError(f"lm.trainer.{name}: say lm.epochs=… instead; the schedule needs to know it, too.")
        progress = [RichProgressBar()] if options.get("enable_progress_bar", True) else []
        ours = {"_target_": "lightning.Trainer", "logger": False, "enable_checkpointing": False, "callbacks": progress}
        try:
            trainer: L.Trainer = instantiate({**ours, **options}, "lm.trainer", max_epochs=self.epochs)
        except MisconfigurationException as error:  # such as a GPU that is not there
            raise ConfigError(f"lm.trainer: {error}") from None
        if trainer.world_size > 1:
            raise ConfigError(f"lm.trainer: {trainer.world_size} processes; a language model is trained by one.")
        return trainer

    def _split(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the sentences that are held out, and of the others."""
        if not count:
            raise DataError("The training text of the language model is empty. Look at train=…")
        order = np.random.default_rng(self.seed).permutation(count)
        held = math.ceil(self.held_out * count)
        if held == count:
            raise DataError("lm: one sentence cannot be trained on and held out: give more text, or lm.held_out=0.")
        return np.sort(order[:held]), np.sort(order[held:])

    def _vocabulary(self, text: _Text, rest: np.ndarray) -> list[str]:
        counts = text.counts(rest)
        words = sorted(
            (word for word, count in counts.items() if count >= self.min_count and word not in SPECIAL),
            key=lambda word: (-counts[word], word),
        )
        if not words:
            raise ConfigError(f"lm.min_count={self.min_count}: no word is seen so often. Lower it, or give more text.")
        return [*SPECIAL, *words]

    def _loader(self, data: _Sentences, numbers: np.ndarray) -> DataLoader:
        sampler = BucketSampler(data.lengths[numbers], self.batch_tokens, seed=self.seed, indices=numbers)
        return DataLoader(data, batch_size=None, sampler=sampler)


def _config(group: str, name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(config_names(group)[name].read_text("utf-8"))
    return config


@dataclass
class _Text:
    """Sentences as numbers, in order of first appearance."""

    words: dict[str, int]
    numbers: np.ndarray
    """(N,) int32: all sentences, one after the other."""
    ends: np.ndarray
    """(S,) int64: where each ends."""

    @classmethod
    def read(cls, sentences: Iterable[Sequence[str]]) -> _Text:
        words: dict[str, int] = {}
        numbers, ends = array("i"), array("q")
        for sentence in sentences:
            numbers.extend([words.setdefault(word, len(words)) for word in sentence])
            ends.append(len(numbers))
        text = cls(words, np.array(numbers, np.int32), np.array(ends, np.int64))
        for special in SPECIAL[1:]:
            if special in words:
                place = np.argmax(text.numbers == words[special])
                raise DataError(
                    f"Sentence {np.searchsorted(text.ends, place, 'right') + 1} of the training text holds {special}. "
                    "Take it out: the start and end of sentences are put there by themselves."
                )
        return text

    def __len__(self) -> int:
        return len(self.ends)

    def counts(self, sentences: np.ndarray) -> dict[str, int]:
        """How often each word is seen in some of the sentences."""
        is_counted = np.zeros(len(self), bool)
        is_counted[sentences] = True
        lengths = np.diff(self.ends, prepend=0)
        counts = np.bincount(self.numbers[np.repeat(is_counted, lengths)], minlength=len(self.words))
        return dict(zip(self.words, counts.tolist(), strict=True))


class _Sentences(Dataset):
    """Batches of a text as ids of a vocabulary."""

    def __init__(self, text: _Text, vocabulary: Sequence[str]):
        ids = {word: k for k, word in enumerate(vocabulary)}
        new = np.array([ids.get(word, UNKNOWN) for word in text.words], np.int32)
        self._numbers, self._ends = new[text.numbers], text.ends
        self.lengths = np.diff(text.ends, prepend=0) + 1
        """(S,) the words of each sentence, and its end."""

    def __getitem__(self, batch: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        return pad([self._row(k) for k, _ in batch])

    def _row(self, k: int) -> np.ndarray:
        words = self._numbers[self._ends[k] + 1 - self.lengths[k] : self._ends[k]]
        return np.concatenate([[BOS], words, [EOS]])


class LanguageModelling(L.LightningModule):
    """The training of a language model: loss, perplexity on held-out sentences, optimizer, the best weights so far.

    Args:
        model: is trained in place.
        optimizer, schedule: their configs.
        steps: of the optimizer, in all.
        batch_tokens: tokens of a batch on average. The loss of every batch is divided by it, so a token counts the same
            in a large batch and in a small one.
    """

    def __init__(
        self, model: Lstm, optimizer: Mapping[str, Any], schedule: Mapping[str, Any], steps: int, batch_tokens: float
    ):
        super().__init__()
        self.model, self.steps, self.batch_tokens = model, steps, batch_tokens
        self.optimizer_config, self.schedule_config = optimizer, schedule
        self.best: dict[str, Tensor] | None = None
        self.best_epoch, self.least = 0, math.inf

    def on_train_epoch_start(self) -> None:
        # sums of losses and tokens
        self._training, self._held_out = torch.zeros(2, 2, dtype=torch.float64, device=self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        losses = -self.model.log_probs(*batch)
        self._training += torch.stack([losses.detach().double().sum(), losses.new_tensor(len(losses))])
        return losses.sum() / self.batch_tokens

    def on_validation_epoch_start(self) -> None:
        self._held_out = torch.zeros(2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        losses = -self.model.log_probs(*batch)
        self._held_out += torch.stack([losses.double().sum(), losses.new_tensor(len(losses))])

    def on_validation_epoch_end(self) -> None:
        perplexity = _exp(self._held_out)
        self.log("val_perplexity", perplexity, prog_bar=True)
        if self.trainer.sanity_checking:
            return
        for config in self.trainer.lr_scheduler_configs:
            if config.reduce_on_plateau:
                self.lr_scheduler_step(config.scheduler, perplexity)
        if perplexity < self.least:
            self.least, self.best_epoch = perplexity, self.current_epoch + 1
            self.best = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def on_train_epoch_end(self) -> None:  # after the validation
        line = f"epoch {self.current_epoch + 1}: perplexity {_exp(self._training):.2f} with dropout"
        if self._held_out[1]:
            is_best = ", the best" if self.best_epoch == self.current_epoch + 1 else ""
            line += f", {_exp(self._held_out):.2f} held out{is_best}"
        self.print(line)

    def configure_optimizers(self) -> Any:
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim <= 1]  # biases: never decayed
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = instantiate(self.optimizer_config, "lm.optimizer", params=groups)
        schedule = instantiate(self.schedule_config, "lm.schedule", optimizer=optimizer, steps=self.steps)
        scheduler: dict[str, Any] = {"scheduler": schedule, "interval": "step"}
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            # never by Lightning, which knows epochs, but no validations
            scheduler |= {"interval": "epoch", "frequency": sys.maxsize, "monitor": "val_perplexity"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def _exp(sums: Tensor) -> float:
    """exp of the mean of (sum, count)."""
    total, count = sums.tolist()
    return math.exp(min(total / count, 700.0)) if count else math.nan
