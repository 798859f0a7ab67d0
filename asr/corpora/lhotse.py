"""Lhotse's cut manifests, and with them its recipes for about a hundred corpora."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr.corpora.base import Corpus, Splits, extra_fields, require_path
from asr.corpora.check import MISSING_AUDIO, Dropped
from asr.errors import ConfigError, DataError
from asr.types import Utterance

NOT_AN_UTTERANCE = "not one supervision on one channel"
NOT_A_FILE = "audio changed on the fly, or not in a file"


@dataclass(kw_only=True)
class Lhotse(Corpus):
    """A CutSet in `.jsonl` or `.jsonl.gz`: mono cuts with a single supervision, on audio files of one channel.

    Cuts are not trimmed: `lhotse cut trim-to-supervisions` makes cuts of one supervision from long ones.
    """

    path: str | Mapping[str, str] | None = None
    """The file, or a file for each split: `{train: …, test: …}`."""
    split: str = "train"
    """What to call the manifest of a single file."""
    audio_root: str | None = None
    """What relative audio paths are relative to; if not given, the working directory, or else the file's folder."""

    def utterances(self, out: Path) -> Splits:
        paths = self.path if isinstance(self.path, Mapping) else {self.split: self.path}
        expected = "a CutSet as .jsonl or .jsonl.gz"
        return {split: self._read(require_path(path, "corpus.path", expected)) for split, path in paths.items()}

    def _read(self, path: Path) -> Iterator[Utterance | Dropped]:
        for cut in _read_cuts(path):
            if type(cut).__name__ != "MonoCut" or len(cut.supervisions) != 1:
                supervisions = len(getattr(cut, "supervisions", ()))
                detail = f"{type(cut).__name__} with {supervisions} supervisions"
                yield Dropped(cut.id, "", NOT_AN_UTTERANCE, detail, cut.duration)
            elif cut.recording is None:
                yield Dropped(cut.id, "", MISSING_AUDIO, "the cut has no recording", cut.duration)
            elif cut.recording.transforms or [source.type for source in cut.recording.sources] != ["file"]:
                yield Dropped(cut.id, "", NOT_A_FILE, "", cut.duration)
            elif cut.recording.num_channels != 1:
                detail = f"channel {cut.channel} of {cut.recording.num_channels}: write the channels to separate files"
                yield Dropped(cut.id, cut.recording.sources[0].source, NOT_AN_UTTERANCE, detail, cut.duration)
            else:
                yield self._utterance(cut, path)

    def _utterance(self, cut: Any, path: Path) -> Utterance:
        supervision = cut.supervisions[0]
        audio = Path(cut.recording.sources[0].source)
        if self.audio_root:
            audio = Path(self.audio_root) / audio
        elif not audio.exists():
            audio = path.parent / audio
        custom = {**(cut.custom or {}), **(supervision.custom or {}), "gender": supervision.gender}
        plain = {key: value for key, value in custom.items() if isinstance(value, (str, int, float, bool))}
        return Utterance(
            str(audio),
            supervision.text,
            duration=cut.duration,
            offset=cut.start,
            id=cut.id,
            speaker=supervision.speaker,
            lang=supervision.language,
            extra=extra_fields(plain, "lhotse"),
        )


def _read_cuts(path: Path) -> Iterator[Any]:
    try:
        from lhotse import CutSet
    except ImportError as error:
        raise ConfigError(f"corpus=lhotse needs the package lhotse ({error}): pip install lhotse urllib3") from None
    try:
        yield from CutSet.from_file(path)
    except (ValueError, KeyError, TypeError, AssertionError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: not a CutSet ({error or type(error).__name__}).") from None
