"""Tokenizers: text to label ids and back; id 0 is always blank."""

from asr.tokenizers.base import BLANK, Tokenizer
from asr.tokenizers.characters import Characters
from asr.tokenizers.sentencepiece import SentencePiece
from asr.tokenizers.words import Words

__all__ = ["BLANK", "Characters", "SentencePiece", "Tokenizer", "Words"]
