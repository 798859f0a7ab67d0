"""Kaldi data directories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from asr.corpora.base import Corpus, Splits, extra_fields, read_lines, require_path
from asr.corpora.check import MISSING_AUDIO, Dropped
from asr.errors import ConfigError, DataError, near_matches
from asr.types import Utterance

DERIVED = ("utt2spk", "spk2utt", "utt2dur", "utt2num_frames")
"""Maps that say nothing the manifest would not say otherwise."""


@dataclass(kw_only=True)
class Kaldi(Corpus):
    """A data directory (`wav.scp`, `text`, `utt2spk`, `segments`), or a folder whose subfolders are such, one a split.

    Other maps become fields of the utterance: `utt2X` and `spk2X` the field `X`, as in `spk2age` → `age`.
    Paths in `wav.scp` are relative to the data directory, or else to one of the two folders above it.
    """

    root: str | None = None
    splits: Sequence[str] | None = None
    """Which subfolders of `root` to take; all data directories if not given."""
    split: str | None = None
    """What to call the split if `root` is itself a data directory; its folder's name if not given."""
    audio_root: str | None = None
    """What relative paths in `wav.scp` are relative to instead."""
    lang: str | None = None
    """Language of the utterances that no `utt2lang` names."""

    def utterances(self, out: Path) -> Splits:
        expected = "a folder with wav.scp, text and utt2spk, or one whose subfolders have them"
        root = require_path(self.root, "corpus.root", expected)
        if (root / "wav.scp").is_file():
            if self.splits:
                raise ConfigError(f"corpus.splits chooses subfolders, but {root} is itself a data directory.")
            return {self.split or root.name: self._read(root)}
        if self.split:
            raise ConfigError(f"corpus.split names a single data directory, but {root} has no wav.scp.")
        there = sorted(path.parent.name for path in root.glob("*/wav.scp"))
        if not there:
            raise DataError(f"corpus.root={self.root}: does not hold the corpus. Expected: {expected}.")
        for split in self.splits or ():
            if split not in there:
                raise DataError(f"corpus.splits: {root / split} has no wav.scp. {near_matches(split, there)}")
        return {split: self._read(root / split) for split in self.splits or there}

    def _read(self, folder: Path) -> Iterator[Utterance | Dropped]:
        recordings = _read_recordings(folder / "wav.scp")
        texts, speakers = _read_map(folder / "text"), _read_map(folder / "utt2spk")
        maps = {path.name: _read_map(path) for prefix in ("utt2", "spk2") for path in sorted(folder.glob(prefix + "*"))}
        maps = {name: values for name, values in maps.items() if name not in DERIVED}
        for name, recording, offset, duration in _read_segments(folder, recordings):
            speaker = speakers.get(name)
            found = {key: at.get(name if key.startswith("utt") else speaker or "") for key, at in maps.items()}
            fields = {key[4:]: value for key, value in sorted(found.items()) if value is not None}  # utt2X is nearer
            lang = fields.pop("lang", None) or self.lang
            text = texts.pop(name, None)
            if recording not in recordings:
                yield Dropped(name, "", MISSING_AUDIO, f"the recording '{recording}' is not in wav.scp")
                continue
            audio = str(self._find_audio(folder, recordings[recording]))
            extra = extra_fields(fields, "kaldi")
            yield Utterance(audio, text, duration, offset, id=name, speaker=speaker, lang=lang, extra=extra)
        for name in texts:
            yield Dropped(name, "", MISSING_AUDIO, "in text, but in neither wav.scp nor segments")

    def _find_audio(self, folder: Path, path: str) -> Path:
        bases = [Path(self.audio_root)] if self.audio_root else [folder, *list(folder.parents)[:2]]
        return next((base / path for base in bases if (base / path).exists()), bases[0] / path)


def _read_map(path: Path) -> dict[str, str]:
    """Values by key; keys must be unique. A missing file is an empty map."""
    values: dict[str, str] = {}
    for number, line in read_lines(path) if path.is_file() else ():
        key, *rest = line.split(maxsplit=1)
        if key in values:
            raise DataError(f"{path}, line {number}: '{key}' occurs a second time. Keys must be unique.")
        values[key] = rest[0].strip() if rest else ""
    return values


def _read_recordings(path: Path) -> dict[str, str]:
    recordings = _read_map(path)
    for name, audio in recordings.items():
        if "|" in audio:
            raise DataError(
                f"{path}: '{name}' is a command ({audio}), and commands are not run. Write the audio to files first, "
                "as Kaldi's 'wav-copy scp:wav.scp scp,p:files.scp' does, and name them in wav.scp."
            )
        if ".ark:" in audio:
            raise DataError(f"{path}: '{name}' lies in an archive ({audio}). Write the audio to files of their own.")
    return recordings


def _read_segments(folder: Path, recordings: dict[str, str]) -> Iterator[tuple[str, str, float, float | None]]:
    """Yield utterance, recording, offset and duration; without `segments` every recording is an utterance."""
    path = folder / "segments"
    if not path.is_file():
        yield from ((name, name, 0.0, None) for name in recordings)
        return
    for number, line in read_lines(path):
        try:
            name, recording, start, end = line.split()[:4]
            offset, stop = float(start), float(end)
        except ValueError:
            wanted = "'utterance recording start end' in seconds"
            raise DataError(f"{path}, line {number}: {wanted} is expected, found {line!r}.") from None
        if not 0 <= offset < float("inf") or (stop != -1 and not offset < stop < float("inf")):
            raise DataError(f"{path}, line {number}: the segment from {start} to {end} s is not one.")
        yield name, recording, offset, None if stop == -1 else stop - offset
