"""LibriSpeech and Mini LibriSpeech: read English audio books (Panayotov et al., ICASSP 2015)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asr.corpora.base import Corpus, Splits, read_lines
from asr.corpora.check import Dropped
from asr.corpora.download import OPENSLR, Archive, locate
from asr.errors import DataError, near_matches
from asr.types import Utterance

# size and MD5 as published in md5sum.txt of resources 12 and 31, copied from public repositories that agree on them
ARCHIVES = {
    "dev-clean": ("12", "337 MB", "42e2234ba48799c1f50f24a7926300a1"),
    "dev-other": ("12", "314 MB", "c8d0bcc9cca99d4f8b62fcc847357931"),
    "test-clean": ("12", "346 MB", "32fa31d27d2e1cad72775fee3f4849a9"),
    "test-other": ("12", "328 MB", "fb5a50374b501bb3bac4815ee91d3135"),
    "train-clean-100": ("12", "6.3 GB", "2a93770f6d5c6c964bc36631d331a522"),
    "train-clean-360": ("12", "23 GB", "c0e676e450a7ff2f54aeade5171606fa"),
    "train-other-500": ("12", "30 GB", "d1a0fd59409feb2c614ce4d30c387708"),
    "dev-clean-2": ("31", "126 MB", "6d7ab67ac6a1d2c993d050e16d61080d"),
    "train-clean-5": ("31", "332 MB", "5df7d4e78065366204ca6845bb08f490"),
}


@dataclass(kw_only=True)
class LibriSpeech(Corpus):
    """LibriSpeech in its official layout: `SUBSET/SPEAKER/CHAPTER/*.flac` and `*.trans.txt`; a split per subset."""

    root: str | None = None
    """The folder with the subsets, or the one above `LibriSpeech/`; with `download`, where to put it."""
    subsets: Sequence[str] | None = None
    """Which to take, such as `[train-clean-100,dev-clean]`; all that are there if not given."""
    download: bool = False
    """Fetch those of `subsets` that are missing."""
    base_url: str = OPENSLR
    checksums: Mapping[str, str] = field(default_factory=dict)
    """MD5 or SHA-256 of archives by subset, instead of the published ones."""

    def utterances(self, out: Path) -> Splits:
        choice = ", ".join(f"{name} ({size})" for name, (_, size, _) in ARCHIVES.items())
        if self.download and not self.subsets:
            raise DataError(f"corpus.download=true needs to know what to fetch: corpus.subsets=[NAME,…] of {choice}.")
        expected = "a folder with subsets (train-clean-100/19/198/19-198.trans.txt), or the one above LibriSpeech/"
        if not self.subsets:
            offer = f"{expected}. corpus.download=true corpus.subsets=[NAME,…] fetches any of {choice}"
            found = locate(self.root, lambda root: root if find_subsets(root) else None, offer)
            return {name: _read(folder) for name, folder in find_subsets(found).items()}
        return {name: _read(self._locate(name, expected)) for name in self.subsets}

    def _locate(self, subset: str, expected: str) -> Path:
        archives = []
        if subset in ARCHIVES:
            resource, size, md5 = ARCHIVES[subset]
            url = f"{self.base_url}/{resource}/{subset}.tar.gz"
            archives = [Archive(url, size, self.checksums.get(subset, md5))]
        elif self.download:
            raise DataError(f"corpus.subsets: there is no subset '{subset}'. {near_matches(subset, ARCHIVES)}")
        find = lambda root: find_subsets(root).get(subset)  # noqa: E731
        return locate(self.root, find, f"{expected}, with the subset '{subset}'", archives, self.download)


def find_subsets(root: Path) -> dict[str, Path]:
    """The subsets below a folder, by name."""
    # in both: where `root` is the folder with the subsets, archives are unpacked below it
    candidates = [path for folder in (root / "LibriSpeech", root) for path in sorted(folder.glob("*"))]
    if found := {path.name: path for path in candidates if any(path.glob("*/*/*.trans.txt"))}:
        return dict(sorted(found.items()))
    return {root.name: root} if any(root.glob("*/*/*.trans.txt")) else {}


def _read(subset: Path) -> Iterator[Utterance | Dropped]:
    genders = _read_genders(subset.parent / "SPEAKERS.TXT")
    for chapter in sorted(path for path in subset.glob("*/*") if path.is_dir()):
        texts: dict[str, str] = {}
        for transcript in sorted(chapter.glob("*.trans.txt")):
            texts |= {key: text for key, _, text in (line.partition(" ") for _, line in read_lines(transcript))}
        speaker = chapter.parent.name
        extra = {"gender": genders[speaker]} if speaker in genders else {}
        for name in sorted(texts.keys() | {path.stem for path in chapter.glob("*.flac")}):
            audio = str(chapter / f"{name}.flac")
            yield Utterance(audio, texts.get(name), id=name, speaker=speaker, lang="en", extra=extra)


def _read_genders(path: Path) -> dict[str, str]:
    """Genders by speaker, from lines such as `14 | F | train-clean-360 | 25.03 | Kristin LeMoine`."""
    if not path.is_file():
        return {}
    rows = ([cell.strip() for cell in line.split("|")] for _, line in read_lines(path) if not line.startswith(";"))
    return {row[0]: row[1] for row in rows if len(row) > 1}
