"""Mozilla Common Voice: read sentences of many languages, with age, gender and accent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from asr.corpora.base import Corpus, Splits, extra_fields, read_lines, require_path
from asr.errors import DataError, near_matches
from asr.types import Utterance

STANDARD = ("train", "dev", "test")


@dataclass(kw_only=True)
class CommonVoice(Corpus):
    """One language of a Common Voice release: `train.tsv`, `dev.tsv`, `test.tsv`, … and `clips/*.mp3`.

    The speaker is the `client_id`; every other column is kept where it is not empty. The tables quote nothing.
    """

    root: str | None = None
    """The folder of the language, such as `cv-corpus-17.0-2024-03-15/cy`."""
    splits: Sequence[str] | None = None
    """Names of tables, such as `[validated,other]`; those of train, dev and test that are there if not given."""

    def utterances(self, out: Path) -> Splits:
        root = require_path(self.root, "corpus.root", "the folder of a language, with train.tsv and clips/")
        there = sorted(path.stem for path in root.glob("*.tsv"))
        splits = self.splits or [split for split in STANDARD if split in there]
        if not splits:
            others = (
                f"corpus.splits chooses others: {', '.join(there)}." if there else "Is it the folder of a language?"
            )
            raise DataError(f"corpus.root={self.root}: holds neither train.tsv, dev.tsv nor test.tsv. {others}")
        for split in splits:
            if split not in there:
                raise DataError(f"corpus.splits: {root} has no {split}.tsv. {near_matches(split, there)}")
        return {split: _read(root, split) for split in splits}


def _read(root: Path, split: str) -> Iterator[Utterance]:
    table = root / f"{split}.tsv"
    lines = read_lines(table)
    header = next(lines, (1, ""))[1].split("\t")
    for column in ("client_id", "path", "sentence"):
        if column not in header:
            raise DataError(f"{table}: has no column '{column}'. {near_matches(column, header)}")
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise DataError(f"{table}, line {number}: {len(cells)} cells, but the header has {len(header)}.")
        row = dict(zip(header, cells, strict=True))
        clip = Path(row.pop("path"))
        audio = root / "clips" / (clip if clip.suffix else f"{clip}.mp3")
        text, speaker, lang = row.pop("sentence"), row.pop("client_id"), row.pop("locale", None)
        yield Utterance(str(audio), text, id=clip.stem, speaker=speaker, lang=lang, extra=extra_fields(row, "cv"))
