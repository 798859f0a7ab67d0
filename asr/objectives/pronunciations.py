"""How words are pronounced: as a lexicon says, or by espeak-ng's rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from asr.errors import ConfigError, DataError
from asr.espeak import Espeak

ESPEAK = "espeak:"
COMMENT = re.compile(r"\s#\s")
NUMBER = re.compile(r"\d*\.\d+([eE]-?\d+)?")
STRESSED = re.compile(r"([A-Z]{2})[0-2]")
"""A vowel of CMUdict with its stress."""
AT_ONCE = 1000
"""Words that espeak-ng is asked for in one request."""


def pronounce(words: Iterable[str], source: str, normalize: Callable[[str], str]) -> dict[str, list[str]]:
    """The phones of words, none for those that are not spoken.

    Args:
        words: as the text normaliser leaves them.
        source: a lexicon, each line a word and its phones (CMUdict's form, or that of Kaldi's `lexicon.txt`); of
            several pronunciations the first is taken, and stress is left out. Or `espeak:VOICE`, one of espeak-ng's
            voices, such as `espeak:en-us`: its phones are those of the International Phonetic Alphabet.
        normalize: the text normaliser, for the words of the lexicon.

    Raises:
        ConfigError: there is no such file or voice, or no espeak-ng.
        DataError: the lexicon is damaged, or lacks a word.
    """
    found = sorted({*words})
    if source.startswith(ESPEAK):
        return _by_rules(found, source)
    lexicon = read_lexicon(source, normalize)
    if missing := [word for word in found if word not in lexicon]:
        named = ", ".join(map(repr, missing[:20])) + (", …" if len(missing) > 20 else "")
        raise DataError(
            f"objective.phones={source}: {len(missing):,} of the {len(found):,} words of the training text are not in "
            f"it: {named}. Add them, or take espeak-ng's rules: objective.phones=espeak:LANGUAGE."
        )
    return {word: lexicon[word] for word in found}


def read_lexicon(path: str, normalize: Callable[[str], str] = str) -> dict[str, list[str]]:
    """The first pronunciation of each word of a lexicon; a spelling that only its case tells from the word goes first.

    Raises:
        ConfigError: there is no such file.
        DataError: a line has no phones, or a probability ahead of them, or the file is no text in UTF-8.
    """
    lexicon: dict[str, list[str]] = {}
    altered: dict[str, list[str]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"objective.phones={path}: no text in UTF-8 ({error}). Convert it.") from None
    except OSError as error:
        raise ConfigError(
            f"objective.phones={path}: cannot be read ({error.strerror}). Give a lexicon, or espeak:VOICE."
        ) from None
    for number, line in enumerate(lines, 1):
        spelled, *phones = COMMENT.split(line)[0].split() or [";;;"]
        if spelled.startswith(";;;"):
            continue
        if not phones or NUMBER.fullmatch(phones[0]):
            raise DataError(f"{path}, line {number}: a word and its phones are expected, found '{line.strip()}'.")
        spelled = re.sub(r"\(\d+\)$", "", spelled)  # READ(2) is another way to say it
        word = normalize(spelled)
        # 'CAUSE is not CAUSE, nor <unk> the word unk, though they are to the text normaliser
        found = lexicon if word.casefold() == spelled.casefold() else altered
        found.setdefault(word, [STRESSED.sub(r"\1", phone) for phone in phones])
    return altered | lexicon


def _by_rules(words: list[str], source: str) -> dict[str, list[str]]:
    phones: list[list[str]] = []
    with Espeak(f"objective.phones={source}", "give a lexicon, or do without: objective.phones=null") as espeak:
        for first in range(0, len(words), AT_ONCE):
            part = words[first : first + AT_ONCE]
            answer = espeak.ask({"voice": source.removeprefix(ESPEAK), "words": part})
            if "error" in answer:
                hint = "Voices are languages: en-us, de, fr, es, cmn, …"
                if not answer["error"].startswith("no voice"):
                    hint = f"It was asked for the words from '{part[0]}' to '{part[-1]}'."
                raise ConfigError(f"objective.phones={source}: {answer['error']}. {hint}")
            phones += answer["phones"]
    return dict(zip(words, phones, strict=True))
