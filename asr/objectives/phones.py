"""The phones of transcripts, by which a lower layer learns what their spelling hides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from asr.errors import DataError
from asr.objectives.pronunciations import pronounce


class Phones(nn.Module):
    """A head over phones for an inner layer, and what it is to predict.

    Args:
        source: of the pronunciations, see `pronounce`.
        texts: all that labels will spell.
        spell: label ids → text.
        normalize: the text normaliser, for the words of a lexicon.
        dim: units of the layer.

    Raises:
        ConfigError, DataError: as `pronounce`; or no word has phones.
    """

    def __init__(
        self,
        source: str,
        texts: Iterable[str],
        spell: Callable[[Sequence[int]], str],
        normalize: Callable[[str], str],
        dim: int,
    ):
        super().__init__()
        words = pronounce((word for text in texts for word in text.split()), source, normalize)
        self.names = sorted({phone for phones in words.values() for phone in phones})
        """Those that occur; the k-th has label k + 1, and 0 is blank."""
        if not self.names:
            raise DataError(f"objective.phones={source}: no word of the training text has phones.")
        ids = {phone: k for k, phone in enumerate(self.names, 1)}
        self.words = {word: [ids[phone] for phone in phones] for word, phones in words.items()}
        self.spell = spell
        self.head = nn.Linear(dim, len(ids) + 1)
        # with the weights, so that a checkpoint tells what they mean
        self.register_buffer("spelled_names", torch.tensor(list(" ".join(self.names).encode()), dtype=torch.uint8))

    def __len__(self) -> int:
        return len(self.names)

    def example(self) -> str:
        """How the longest word is pronounced."""
        word = max(self.words, key=lambda word: len(self.words[word]))
        return f"{word} → {' '.join(self.names[label - 1] for label in self.words[word])}"

    def encode(self, text: str) -> list[int]:
        """The phones of a text."""
        return [phone for word in text.split() for phone in self.words[word]]

    def labels(self, labels: Tensor, label_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (B, L), (B,) of the recognizer → labels (B, P), (B,) of phones."""
        rows = []
        for row, count in zip(labels.tolist(), label_lengths.tolist(), strict=True):
            rows.append(torch.tensor(self.encode(self.spell(row[:count])), dtype=torch.int64))
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return padded.to(labels.device, non_blocking=True), torch.tensor([len(row) for row in rows])

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, H) → (B, T, phones + 1) log-probabilities, float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float()).log_softmax(-1)
