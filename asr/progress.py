"""How far a transcription is: minutes of audio, on standard error."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from asr.data.audio import STDIN, UNKNOWN, sound_file
from asr.data.remote import is_url
from asr.data.shards import parse_member

if TYPE_CHECKING:
    from rich.progress import Progress


class AudioProgress:
    """A bar of the minutes done, with the real-time factor: seconds taken per second of audio. Use it by `with`.

    Args:
        paths: the recordings; how long those are that libsndfile does not open is not known beforehand.
        terminal: where the bar is drawn, if it is one; by default standard error.
    """

    def __init__(self, paths: Sequence[str], terminal: TextIO | None = None):
        self._terminal = terminal or sys.stderr
        self._shown = self._terminal.isatty()
        self._done, self._total = 0.0, sum(map(_seconds, paths)) if self._shown else 0.0
        self._bar: Progress | None = None

    def __enter__(self) -> AudioProgress:
        self._started = time.monotonic()
        if self._shown:  # else nobody waits for rich
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.fields[minutes]}"), BarColumn(), TextColumn("{task.fields[speed]}"))
            console = Console(file=self._terminal)
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console, redirect_stdout=False)
            self._task = self._bar.add_task("", total=self._total, minutes="", speed="")
            self.advance(0.0)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, seconds: float) -> None:
        """Note that so many seconds of audio are done."""
        self._done += seconds
        if self._bar:
            total = max(self._done, self._total)
            speed = f"real-time factor {(time.monotonic() - self._started) / self._done:.4f}" if self._done else ""
            minutes = f"{self._done / 60:.1f} / {total / 60:.1f} min"
            self._bar.update(self._task, completed=self._done, total=total, minutes=minutes, speed=speed)

    def print(self, text: str) -> None:
        """Print to standard output; where that is the terminal with the bar, above it."""
        if self._bar and sys.stdout.isatty():
            self._bar.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            print(text, flush=True)


def _seconds(path: str) -> float:
    if path == STDIN or not (is_url(path) or parse_member(path) or os.path.isfile(path)):
        return 0.0  # libsndfile would take the audio from standard input, or wait for what a pipe gives
    try:
        with sound_file(path) as file:
            return file.frames / file.samplerate if file.frames < UNKNOWN else 0.0
    except (OSError, RuntimeError):  # soundfile's own errors are RuntimeErrors; transcribing will say what is wrong
        return 0.0
