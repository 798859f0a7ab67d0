"""Subword labels: byte-pair encoding or a unigram model, by the sentencepiece library."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from asr.errors import CheckpointError, ConfigError
from asr.tokenizers.base import BLANK, Tokenizer, require_text

SPACE = "▁"
"""How sentencepiece writes the space before a word."""
MODEL = "sentencepiece.model"


class SentencePiece(Tokenizer):
    """Subword pieces learned from the training text.

    Kudo & Richardson, "SentencePiece: a simple and language independent subword tokenizer", 2018. Its id 0,
    the unknown piece, is never emitted, so blank takes that place and ids need no shift.

    Args:
        vocab_size: number of labels, blank included.
        model_type: `bpe` or `unigram`.
        unknown: what `encode` does with a character that no piece has: `error`, or `skip` it.
    """

    def __init__(self, vocab_size: int = 256, model_type: str = "unigram", unknown: str = "error") -> None:
        super().__init__(unknown)
        if model_type not in ("bpe", "unigram"):
            raise ConfigError(f"tokenizer.model_type: no such value {model_type!r}. There are: bpe, unigram.")
        self.vocab_size, self.model_type = vocab_size, model_type
        self.model = b""

    @property
    def word_starts(self) -> list[bool]:
        return [label.startswith(SPACE) for label in self.labels]

    def fit(self, texts: Iterable[str]) -> None:
        import sentencepiece

        model, seen = io.BytesIO(), False

        def sentences() -> Iterator[str]:
            nonlocal seen
            for text in texts:
                if text.strip():
                    seen = True
                    yield text

        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=sentences(),
                model_writer=model,
                model_type=self.model_type,
                vocab_size=self.vocab_size,
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                character_coverage=1.0,
                normalization_rule_name="identity",  # the text normaliser has done it
                max_sentence_length=1 << 24,  # bytes; longer ones are left out without a word
                num_threads=4,  # the sums of the unigram model depend on it
                minloglevel=3,
            )
        except RuntimeError as error:
            if not seen:
                require_text(())
            raise ConfigError(self._reason(str(error))) from None
        self._take(model.getvalue())

    def _reason(self, error: str) -> str:
        if found := re.search(r"too high .*<= (\d+)", error):
            return (
                f"tokenizer.vocab_size: {self.vocab_size} is too large for the training text, which gives "
                f"{found[1]} labels at most. Set tokenizer.vocab_size={found[1]} or less."
            )
        if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
            return (
                f"tokenizer.vocab_size: {self.vocab_size} is too small: the characters of the training text alone "
                f"need {found[1]}. Set tokenizer.vocab_size={found[1]} or more."
            )
        return f"tokenizer: sentencepiece cannot be trained ({error})."

    def _take(self, model: bytes) -> None:
        import sentencepiece

        self.model = model
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        pieces = [self.processor.id_to_piece(i) for i in range(1, len(self.processor))]
        self._set_labels([BLANK, *pieces])
        self.characters = set("".join(pieces).replace(SPACE, " ")) | {" "}

    def unknown(self, text: str) -> list[str]:
        known = self.characters if self.labels else set()
        return [character for character in dict.fromkeys(text) if character not in known]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.labels[i] for i in ids).replace(SPACE, " ").strip()

    def _encode(self, text: str) -> list[int]:
        return self.processor.encode(text)

    def _without(self, text: str, unknown: list[str]) -> str:
        return " ".join("".join(character for character in text if character not in unknown).split())

    def save(self, folder: str | Path) -> None:
        super().save(folder)
        (Path(folder) / MODEL).write_bytes(self.model)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        tokenizer = super().load(folder)
        path, saved = Path(folder) / MODEL, tokenizer.labels
        try:
            tokenizer._take(path.read_bytes())
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file: the tokenizer is missing. Copy the whole folder.") from None
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path}: damaged ({error}). Fetch it again.") from None
        if tokenizer.labels != saved:
            raise CheckpointError(f"{path}: its pieces are not the labels of tokenizer.json. Copy the whole folder.")
        return tokenizer
