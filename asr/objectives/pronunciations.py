"""How words are pronounced: as a lexicon says, or by espeak-ng's rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from asr.errors import ConfigError, DataError
from asr.espeak import Espeak

ESPEAK = "espeak:"
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
        named = ", ".join(map(repr, missing[:5])) + (", …" if len(missing) > 5 else "")
        raise DataError(
            f"objective.phones={source}: {len(missing):,} of the {len(found):,} words of the training text are not in "
            f"it: {named}. Add them, or take espeak-ng's rules: objective.phones=espeak:en-us."
        )
    return {word: lexicon[word] for word in found}


def read_lexicon(path: str, normalize: Callable[[str], str] = str) -> dict[str, list[str]]:
    """The first pronunciation of each word of a lexicon.

    Raises:
        ConfigError: there is no such file.
        DataError: a line has no phones, or the file is no text in UTF-8.
    """
    lexicon: dict[str, list[str]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"objective.phones={path}: no text in UTF-8 ({error}). Convert it.") from None
    except OSError as error:
        raise ConfigError(
            f"objective.phones={path}: cannot be read ({error.strerror}). Give a lexicon, or espeak:VOICE."
        ) from None
    for number, line in enumerate(lines, 1):
        word, *phones = line.split() or [";;;"]
        if word.startswith(";;;"):
            continue
        if not phones:
            raise DataError(f"{path}, line {number}: '{word}' has no phones. A word and its phones are expected.")
        word = normalize(re.sub(r"\(\d+\)$", "", word))  # READ(2) is another way to say it
        lexicon.setdefault(word, [STRESSED.sub(r"\1", phone) for phone in phones])
    return lexicon


def _by_rules(words: list[str], source: str) -> dict[str, list[str]]:
    phones: list[list[str]] = []
    with Espeak(f"objective.phones={source}", "give a lexicon, or do without: objective.phones=null") as espeak:
        for first in range(0, len(words), AT_ONCE):
            part = words[first : first + AT_ONCE]
            answer = espeak.ask({"voice": source.removeprefix(ESPEAK), "words": part})
            if "error" in answer:
                raise ConfigError(
                    f"objective.phones={source}: {answer['error']}. Voices are languages: en-us, de, fr, es, cmn, …"
                )
            phones += answer["phones"]
    return dict(zip(words, phones, strict=True))
