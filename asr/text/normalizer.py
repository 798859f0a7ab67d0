"""The text normaliser: Unicode form, case, punctuation, spaces."""

from __future__ import annotations

import re
import unicodedata

from asr.errors import ConfigError

OPTIONS = {
    "case": ("lower", "upper", "keep"),
    "punctuation": ("remove", "keep"),
    "unicode_form": ("NFC", "NFD", "NFKC", "NFKD"),
    "spaces": ("collapse", "remove"),
}

APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼʹ′´`", "'"))
EDGE_APOSTROPHES = re.compile(r"(?<!\S)'+|'+(?!\S)")
JOINERS = "\u200c\u200d"
"""Invisible, but part of the spelling of Persian and of the languages of India."""


class Normalizer:
    """Map text to one spelling; doing it twice changes nothing.

    Args:
        case: `lower`, `upper` or `keep`.
        punctuation: `remove` makes a space of punctuation, hyphens and symbols (Unicode categories P and S)
            and drops invisible characters; an apostrophe stays inside a word, typographic ones become `'`.
            `keep` leaves all as it is.
        unicode_form: NFC, NFD, NFKC or NFKD; the K forms turn full-width letters and ligatures into plain ones.
        keep: characters that `punctuation=remove` must leave.
        spaces: `collapse` runs of white space to one space, or `remove` it, for scripts without spaces.

    Raises:
        ConfigError: an option has no such value.

    Example:
        >>> Normalizer()("Twenty-one o’clock,  they said: 'Go!'")
        "twenty one o'clock they said go"
    """

    def __init__(
        self,
        case: str = "lower",
        punctuation: str = "remove",
        unicode_form: str = "NFKC",
        keep: str = "'",
        spaces: str = "collapse",
    ) -> None:
        values = (case, punctuation, unicode_form, spaces)
        for (key, options), value in zip(OPTIONS.items(), values, strict=True):
            if value not in options:
                raise ConfigError(f"text.{key}: no such value {value!r}. There are: {', '.join(options)}.")
        self.case, self.unicode_form, self.space = case, unicode_form, " " if spaces == "collapse" else ""
        self.table = _Punctuation(keep) if punctuation == "remove" else None

    def __call__(self, text: str) -> str:
        if self.table is not None:
            text = text.translate(APOSTROPHES)
        text = unicodedata.normalize(self.unicode_form, text)  # type: ignore[arg-type]
        if self.case != "keep":
            text = text.lower() if self.case == "lower" else text.upper()
        if self.table is not None:  # the forms above can bring forth new punctuation: "ŉ" is "ʼn", "…" is "..."
            text = EDGE_APOSTROPHES.sub(" ", text.translate(APOSTROPHES).translate(self.table))
        # what was taken out may have parted a letter from its accent, so the form comes last
        words = text.split()
        if self.table is not None:  # at the edge of a word, joiners join nothing
            words = [stripped for word in words if (stripped := word.lstrip(JOINERS).rstrip(JOINERS[0]))]
        text = self.space.join(words)
        return unicodedata.normalize(self.unicode_form, text)  # type: ignore[arg-type]


EMOJI_MARKS = {*map(chr, range(0xFE00, 0xFE10)), *map(chr, range(0xE0100, 0xE01F0)), "\u20e3"}
"""Variation selectors and the key cap: nothing without the sign before them, which is dropped."""


class _Punctuation(dict):
    """A table for `str.translate` that learns a character's fate when it first meets it."""

    def __init__(self, keep: str) -> None:
        self.keep = keep

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if character in self.keep or character in JOINERS:
            self[code] = character
        elif character == "'":
            self[code] = ""  # "don't" is one word, with or without
        elif category[0] in "PS" or character.isspace():
            self[code] = " "
        else:
            self[code] = "" if category in ("Cc", "Cf", "Cs") or character in EMOJI_MARKS else character
        return self[code]
