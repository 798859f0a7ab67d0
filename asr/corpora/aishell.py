"""AISHELL-1: read Mandarin (Bu et al., O-COCOSDA 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asr.corpora.base import Corpus, Splits, read_lines
from asr.corpora.check import Dropped
from asr.corpora.download import OPENSLR, Archive, locate, unpack
from asr.errors import DataError
from asr.types import Utterance

TRANSCRIPT = Path("transcript", "aishell_transcript_v0.8.txt")


@dataclass(kw_only=True)
class Aishell(Corpus):
    """AISHELL-1 in its official layout: `transcript/aishell_transcript_v0.8.txt`, `wav/{train,dev,test}/SPEAKER/*.wav`.

    Speakers that are still packed, as they are in the official archive, are unpacked in place. The spaces between
    the transcript's words are removed. Transcripts of speakers that none of the folders holds are not counted.
    """

    root: str | None = None
    """The folder `data_aishell`, or the one above it; with `download`, where to put it."""
    download: bool = False
    base_url: str = OPENSLR
    checksum: str | None = "2f494334227864a8a8fec932999db9d8"
    """MD5 or SHA-256 of the archive."""

    def utterances(self, out: Path) -> Splits:
        archive = Archive(f"{self.base_url}/33/data_aishell.tgz", "15 GB", self.checksum)
        expected = f"the folder data_aishell with {TRANSCRIPT} and wav/, or the folder above it"
        folder = locate(self.root, _find, expected, [archive], self.download)
        for packed in sorted((folder / "wav").glob("*.tar.gz")):
            if not any((folder / "wav").glob(f"*/{packed.name.removesuffix('.tar.gz')}")):
                unpack(packed, folder / "wav")
        parts = [split for split in ("train", "dev", "test") if (folder / "wav" / split).is_dir()]
        if not parts:
            raise DataError(f"{folder / 'wav'}: holds neither train/, dev/ nor test/. Is the corpus unpacked whole?")
        texts = _read_transcript(folder / TRANSCRIPT)
        return {split: _read(folder / "wav" / split, texts) for split in parts}


def _find(root: Path) -> Path | None:
    return next((folder for folder in (root, root / "data_aishell") if (folder / TRANSCRIPT).is_file()), None)


def _read_transcript(path: Path) -> dict[str, dict[str, str]]:
    """Texts by speaker and utterance id, from lines such as `BAC009S0002W0122 而 对 楼市 成交`."""
    texts: dict[str, dict[str, str]] = {}
    for number, line in read_lines(path):
        name, *words = line.split()
        if len(name) != 16:
            raise DataError(f"{path}, line {number}: an id such as BAC009S0002W0122 is expected, found {name!r}.")
        texts.setdefault(name[6:11], {})[name] = "".join(words)
    return texts


def _read(part: Path, texts: dict[str, dict[str, str]]) -> Iterator[Utterance | Dropped]:
    for folder in sorted(path for path in part.iterdir() if path.is_dir()):
        spoken = texts.get(folder.name, {})
        for name in sorted(spoken.keys() | {path.stem for path in folder.glob("*.wav")}):
            audio = str(folder / f"{name}.wav")
            yield Utterance(audio, spoken.get(name), id=name, speaker=folder.name, lang="zh")
