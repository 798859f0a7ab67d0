"""CMU AN4 (the "alphanumeric" or census database): spelled letters, digits and short commands."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asr.corpora.base import Corpus, Splits, read_lines
from asr.corpora.check import MISSING_AUDIO, Dropped
from asr.corpora.download import Archive, locate
from asr.data.audio import AUDIO_SUFFIXES
from asr.errors import DataError
from asr.types import Utterance


@dataclass(kw_only=True)
class An4(Corpus):
    """AN4 in its official layout: `etc/an4_{train,test}.{fileids,transcription}` and `wav/`.

    One part of it is enough. SPHERE files are read as they are; headerless `.raw` ones (16 kHz, 16 bit,
    big-endian, although their README says little-endian) are converted to FLAC below `out/audio`.
    """

    root: str | None = None
    """The folder with `etc` and `wav`, or the one above it; with `download`, where to put it."""
    download: bool = False
    base_url: str = "http://www.speech.cs.cmu.edu/databases/an4"
    checksum: str | None = None
    """MD5 or SHA-256 of the archive; CMU publishes none."""

    def utterances(self, out: Path) -> Splits:
        archive = Archive(f"{self.base_url}/an4_sphere.tar.gz", "64 MB", self.checksum)
        expected = "a folder with wav/ and etc/an4_train.fileids or etc/an4_test.fileids, or the folder above it"
        folder = locate(self.root, _find, expected, [archive], self.download)
        return {split: _read(folder, split, out) for split in _parts(folder)}


def _parts(folder: Path) -> list[str]:
    return [split for split in ("train", "test") if (folder / "etc" / f"an4_{split}.fileids").is_file()]


def _find(root: Path) -> Path | None:
    return next((folder for folder in (root, root / "an4") if _parts(folder)), None)


def _read(folder: Path, split: str, out: Path) -> Iterator[Utterance | Dropped]:
    texts = _read_transcription(folder / "etc" / f"an4_{split}.transcription")
    for _, line in read_lines(folder / "etc" / f"an4_{split}.fileids"):
        fileid = Path(line.strip())
        audio = _find_audio(folder / "wav" / fileid)
        if audio.suffix == ".raw" and audio.stat().st_size:
            audio = _convert_raw(audio, out / "audio" / f"{fileid}.flac")
        text = texts.pop(fileid.name, None)
        yield Utterance(str(audio), text, id=fileid.name, speaker=fileid.parent.name, lang="en")
    for name in texts:
        yield Dropped(name, "", MISSING_AUDIO, f"transcribed, but not in an4_{split}.fileids")


def _read_transcription(path: Path) -> dict[str, str]:
    """Texts by utterance id, from lines such as `<s> YES </s> (an251-fash-b)`; test lines lack the sentence marks."""
    if not path.is_file():
        raise DataError(f"{path}: no such file. It belongs to the official layout, beside the .fileids.")
    texts = {}
    for number, line in read_lines(path):
        match = re.fullmatch(r"(.*)\(([^()]+)\)\s*", line)
        if match is None:
            raise DataError(f"{path}, line {number}: a text and '(utterance-id)' are expected, found {line!r}.")
        words = [word for word in match[1].split() if word not in ("<s>", "</s>")]
        texts[Path(match[2].strip()).name] = " ".join(words)
    return texts


def _find_audio(stem: Path) -> Path:
    candidates = (Path(f"{stem}{suffix}") for suffix in (*AUDIO_SUFFIXES, ".raw"))
    return next((path for path in candidates if path.is_file()), Path(f"{stem}.sph"))


def _convert_raw(raw: Path, flac: Path) -> Path:
    import numpy as np
    import soundfile

    flac.parent.mkdir(parents=True, exist_ok=True)
    partial = flac.with_name(f".{flac.name}.{os.getpid()}.partial")
    try:
        samples = np.frombuffer(raw.read_bytes()[: raw.stat().st_size // 2 * 2], dtype=">i2")
        soundfile.write(partial, samples.astype(np.int16), 16000, format="FLAC")
        partial.replace(flac)
    finally:
        partial.unlink(missing_ok=True)
    return flac
