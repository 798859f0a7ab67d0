"""Where transcripts go: a folder, or beside the audio."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from asr.data.containers import STDIN
from asr.errors import ConfigError, DataError
from asr.types import Transcript
from asr.writers import FORMATS, format_transcript

BESIDE = "beside"


class TranscriptFiles:
    """Writes transcripts, a file for each recording and format.

    Args:
        output: a folder, made if it is missing, or "beside": each file goes into the folder of its recording.
        formats: of `asr.writers.FORMATS`.
        audio: the recordings, under the file or folder that was named for them. In a folder they lie as below that
            one. Where two would be called the same, their suffixes stay: `a.wav.srt` and `a.mp3.srt`; and where one
            has the name of another but for its case, it gets a number.
        overwrite: replace files that lie there.
        channel: of the audio files, from 0, for the CTM.

    Raises:
        ConfigError: two recordings would be written to the same file.
        DataError: files lie there and `overwrite` is false, or a folder cannot be written to.
    """

    def __init__(
        self,
        output: str,
        formats: Sequence[str],
        audio: Mapping[str, Sequence[str]],
        overwrite: bool = False,
        channel: int | None = None,
    ):
        self.formats, self.channel = formats, channel
        self.recordings = recording_names(path for paths in audio.values() for path in paths)
        places = {path: _place(output, path, named) for named, paths in audio.items() for path in paths}
        stems = {path: os.path.splitext(place)[0] for path, place in places.items()}
        shared = Counter(stem.lower() for stem in stems.values())  # some systems do not tell A from a
        wanted = {path: places[path] if shared[stem.lower()] > 1 else stem for path, stem in stems.items()}
        taken: dict[str, str] = {}
        for path, stem in wanted.items():
            if (other := taken.setdefault(stem, path)) != path:
                raise ConfigError(f"{other} and {path}: both would go to {stem}. Give each an output=DIR of its own.")
        self._stems = dict(zip(wanted, distinct(wanted.values()), strict=True))
        found = [file for path in self._stems for file in self.files(path) if os.path.lexists(file)]
        if found and not overwrite:
            raise DataError(
                f"{', '.join(found)}: {'exist' if len(found) > 1 else 'exists'} already. Choose another folder with "
                "output=DIR, or replace what lies there with overwrite=true."
            )
        for folder in sorted({os.path.dirname(stem) or "." for stem in self._stems.values()}):
            try:
                os.makedirs(folder, exist_ok=True)
            except OSError as error:
                raise DataError(f"output={folder}: cannot be made ({error.strerror}).") from None
            if not os.access(folder, os.W_OK | os.X_OK):
                raise DataError(f"output={folder}: no permission to write. Choose another folder with output=DIR.")

    def files(self, audio: str) -> list[str]:
        """Where the transcript of a recording goes, in the order of the formats."""
        return [self._stems[audio] + FORMATS[form] for form in self.formats]

    def write(self, transcript: Transcript) -> None:
        """Write a transcript in all formats.

        Raises:
            DataError: a file cannot be written.
        """
        for form, file in zip(self.formats, self.files(transcript.audio), strict=True):
            with whole_file(Path(file), "output") as lines:
                lines.write(format_transcript(form, transcript, self.recordings[transcript.audio], self.channel) + "\n")


def _place(output: str, audio: str, named: str) -> str:
    """The path of a recording's files, with the suffix of the recording."""
    if audio == STDIN:
        if output == BESIDE:
            raise ConfigError("output=beside: standard input lies nowhere. Name a folder: output=DIR.")
        return os.path.join(output, "stdin.wav")
    if output == BESIDE:
        return audio
    return os.path.join(output, os.path.basename(audio) if audio == named else os.path.relpath(audio, named))


@contextmanager
def whole_file(path: Path, option: str) -> Iterator[TextIO]:
    """A text file that is there whole or not at all.

    Args:
        path: its name.
        option: the key by which another folder is chosen, for the message.

    Raises:
        DataError: it cannot be written.
    """
    partial = path.with_name(f".{path.name[:40]}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:  # names that are not UTF-8
            yield file
        partial.replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}). Choose another folder with {option}=DIR."
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def safe_names(names: Sequence[str]) -> list[str]:
    """File names that any system takes, without white space, all different: what is not safe becomes `_`.

    >>> safe_names(["a/b c", "a_b_c", "语音"])
    ['a_b_c', 'a_b_c-2', '语音']
    """
    return distinct(re.sub(r"[^\w.,=@+-]+", "_", name).strip("_.-")[-60:] or "_" for name in names)


def distinct(names: Iterable[str]) -> list[str]:
    """Names, of which those that were there before get a number; some systems do not tell A from a.

    >>> distinct(["a", "A", "b"])
    ['a', 'A-2', 'b']
    """
    taken: dict[str, str] = {}
    for name in names:
        unique, k = name, 1
        while unique.lower() in taken:
            k += 1
            unique = f"{name}-{k}"
        taken[unique.lower()] = unique
    return list(taken.values())


def recording_names(paths: Iterable[str]) -> dict[str, str]:
    """A name for each audio file: its stem, or where two have the same, its path below the folder of all."""
    files = list(dict.fromkeys(paths))
    stems = [os.path.splitext(os.path.basename(path))[0] for path in files]
    if len(set(stems)) < len(stems):
        common = os.path.commonpath(map(os.path.abspath, files))
        stems = [os.path.splitext(os.path.relpath(path, common))[0] for path in files]
    return dict(zip(files, safe_names(stems), strict=True))
