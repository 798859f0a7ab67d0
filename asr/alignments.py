"""The folder of an alignment: JSON Lines, CTM, TextGrids, and the utterances whose text fits their audio worst."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asr.data.manifest import to_row
from asr.data.remote import is_url
from asr.data.shards import parse_member
from asr.errors import AsrError, ConfigError, DataError
from asr.evaluation.files import check_folder
from asr.recordings import in_order
from asr.types import AlignedTranscript, Utterance
from asr.writers import check_formats, to_aligned_json, to_ctm, to_textgrid
from asr.writers.files import recording_names, safe_names, whole_file

JSON, CTM, SUSPICIOUS = "alignments.jsonl", "alignments.ctm", "suspicious.jsonl"
FORMATS = ("json", "ctm", "textgrid")

Results = Iterable[tuple[int, AlignedTranscript | AsrError]]


class AlignmentFolder:
    """Writes the alignments of some utterances into a folder.

    Args:
        folder: made if it is missing.
        formats: any of `json` (`alignments.jsonl`), `ctm` (`alignments.ctm`, with times from the start of the file) and
            `textgrid` (a file for each utterance, named by its id).
        utterances: all that will be aligned, with ids that differ.
        overwrite: replace files that lie there.
        channel: of the audio files, from 0, for the CTM.

    Raises:
        ConfigError: there is no such format.
        DataError: files lie there and `overwrite` is false, or the folder cannot be written to.
    """

    def __init__(
        self,
        folder: str | Path,
        formats: Sequence[str],
        utterances: Sequence[Utterance],
        overwrite: bool = False,
        channel: int | None = None,
    ):
        check_formats(formats, FORMATS)
        self.folder, self.formats, self.utterances, self.channel = Path(folder), formats, utterances, channel
        self.names = [f"{name}.TextGrid" for name in safe_names([utterance.id for utterance in utterances])]
        audio = {u.audio_filepath: u.id for u in utterances}
        members = {path: name for path, name in audio.items() if parse_member(path)}  # which have no names of their own
        others = recording_names(path for path in audio if path not in members)
        names = safe_names([*others.values(), *members.values()])
        self.recordings = dict(zip([*others, *members], names, strict=True))
        files = [SUSPICIOUS, *([JSON] if "json" in formats else []), *([CTM] if "ctm" in formats else [])]
        files += self.names if "textgrid" in formats else []
        found = [file for file in files if (self.folder / file).exists()]
        if found and not overwrite:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise DataError(
                f"{folder}: holds {found[0]}{more} already. Choose another folder with out=DIR, "
                "or replace what lies there with overwrite=true."
            )
        check_folder(self.folder, overwrite=True)

    def write(self, results: Results) -> list[dict[str, Any]]:
        """Write the results of `align_each`.

        Returns:
            the rows of `suspicious.jsonl`, a manifest: utterances that could not be aligned, with the `error`, then the
            others with their `score`, the worst first, what the recognizer `heard`, and the least certain word.
        """
        rows, words = [], []
        with whole_file(self.folder / JSON, "out") if "json" in self.formats else nullcontext() as lines:
            for index, result in in_order(results):
                utterance = self.utterances[index]
                rows.append(_suspicion(utterance, result, self.folder))
                if isinstance(result, AsrError):
                    continue
                if lines is not None:
                    lines.write(to_aligned_json(result, utterance) + "\n")
                if "ctm" in self.formats:
                    name = self.recordings[utterance.audio_filepath]
                    words += to_ctm(result, name, self.channel, utterance.offset).splitlines()
                if "textgrid" in self.formats:
                    with whole_file(self.folder / self.names[index], "out") as file:
                        file.write(to_textgrid(result) + "\n")
        if "ctm" in self.formats:  # sclite wants it sorted
            words.sort(key=lambda line: (line.split()[0], float(line.split()[2])))
            with whole_file(self.folder / CTM, "out") as file:
                file.writelines(line + "\n" for line in words)
        rows.sort(key=lambda row: row.get("score", -float("inf")))
        with whole_file(self.folder / SUSPICIOUS, "out") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return rows


def _suspicion(utterance: Utterance, result: AlignedTranscript | AsrError, folder: Path) -> dict[str, Any]:
    path = utterance.audio_filepath
    path = path if is_url(path) else os.path.abspath(path)
    row = to_row(replace(utterance, audio_filepath=path), Path(os.path.abspath(folder)))
    row = {key: value for key, value in row.items() if key not in ("score", "heard", "worst_word", "error")}  # old ones
    if isinstance(result, AsrError):
        return row | {"error": str(result)}
    row |= {"duration": round(result.duration, 3), "score": round(result.score, 4), "heard": result.heard}
    if result.words:
        worst = min(result.words, key=lambda word: word.confidence)
        row["worst_word"] = {"text": worst.text, "start": worst.start, "confidence": round(worst.confidence, 4)}
    return row


def print_suspicious(rows: Sequence[dict[str, Any]], count: int, console: Console) -> None:
    """Print a table of the utterances with the worst scores, those that could not be aligned left out."""
    shown = [row for row in rows if "score" in row][:count]
    if not shown:
        return
    title = Text(f"the {len(shown)} utterances whose text fits worst")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("score", justify="right", no_wrap=True)
    for column in ("id", "text", "heard"):
        table.add_column(column, overflow="fold")
    for row in shown:
        table.add_row(f"{row['score']:.2f}", *(Text(row[key] or "") for key in ("id", "text", "heard")))
    console.print(table)


def recording(files: Sequence[str], text: str | None) -> Utterance:
    """The utterance of one audio file and its text, which may be the name of a text file.

    Raises:
        ConfigError: there is not one audio file, or no text.
        DataError: the text file cannot be read.
    """
    if len(files) != 1:
        found = "Which audio?" if not files else f"{', '.join(files)}: these are {len(files)} audio files."
        raise ConfigError(
            f"{found} One at a time is aligned with transcript=TEXT_OR_FILE; several: write them into a manifest, "
            "and give manifest=FILE.jsonl out=DIR."
        )
    if not isinstance(text, str):
        raise ConfigError(f"transcript: has to be given: what is said in {files[0]}, or a text file that holds it.")
    if os.path.isfile(text):
        try:
            text = Path(text).read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{text}: cannot be read as a UTF-8 text file ({error}).") from None
    elif text.endswith(".txt"):
        raise DataError(f"{text}: no such text file. Give one that exists, or the text itself: transcript='…'")
    return Utterance(files[0], text, id=os.path.splitext(os.path.basename(files[0]))[0])


def format_alignment(form: str, transcript: AlignedTranscript, utterance: Utterance, channel: int | None) -> str:
    """An alignment in one of the formats, without its last line's end."""
    if form == "ctm":
        [name] = recording_names([utterance.audio_filepath]).values()
        return to_ctm(transcript, name, channel, utterance.offset)
    return to_textgrid(transcript) if form == "textgrid" else to_aligned_json(transcript, utterance)
