"""Audio files with their transcripts beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asr.corpora.base import Corpus, Splits, read_lines, require_path
from asr.corpora.check import MISSING_AUDIO, Dropped
from asr.data.audio import AUDIO_SUFFIXES
from asr.data.folders import files_below
from asr.errors import ConfigError, DataError
from asr.types import Utterance


@dataclass(kw_only=True)
class Folder(Corpus):
    """Every audio file below `root` with a `.txt` of the same stem; the id is the path without the suffix."""

    root: str | None = None
    split: str = "train"
    """What to call the manifest."""
    speaker: str | None = None
    """`parent` takes the name of a file's folder as its speaker."""
    lang: str | None = None

    def utterances(self, out: Path) -> Splits:
        if self.speaker not in (None, "parent"):
            raise ConfigError(f"corpus.speaker={self.speaker}: only 'parent' (the name of a file's folder) is known.")
        root = require_path(self.root, "corpus.root", "a folder with audio files and a .txt of the same stem for each")
        return {self.split: self._read(root)}

    def _read(self, root: Path) -> Iterator[Utterance | Dropped]:
        files = [path for path in sorted(map(Path, files_below(root, _refuse))) if path.is_file()]
        texts = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}
        audio = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
        for path in audio:
            text = _read_text(texts[stem]) if (stem := path.with_suffix("")) in texts else None
            name = stem.relative_to(root).as_posix()
            yield Utterance(str(path), text, id=name, speaker=self.speaker and path.parent.name, lang=self.lang)
        stems = {path.with_suffix("") for path in audio}
        for stem, path in texts.items():
            if stem not in stems:
                name = stem.relative_to(root).as_posix()
                yield Dropped(name, "", MISSING_AUDIO, f"{path.name} has no audio file beside it")


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror}).")


def _read_text(path: Path) -> str:
    """The lines of a transcript, joined by spaces."""
    return " ".join(line.strip() for _, line in read_lines(path))
