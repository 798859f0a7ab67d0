"""Text without accents."""

import unicodedata


class Unaccented:
    """Lower case, accents taken off, anything but letters, digits and apostrophes a space: "Été" becomes "ete"."""

    def __call__(self, text: str) -> str:
        letters = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
        return " ".join("".join(c if c.isalnum() or c == "'" else " " for c in letters).split())
