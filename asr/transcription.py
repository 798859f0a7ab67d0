"""`asr transcribe`: files and folders, or a live stream, to transcripts that are printed or written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np

from asr.data.audio import AUDIO_SUFFIXES
from asr.data.containers import CONTAINER_SUFFIXES
from asr.data.folders import files_below
from asr.errors import AsrError, ConfigError
from asr.recordings import joined
from asr.tokenizers.base import Tokenizer
from asr.types import Transcript, Utterance, Word
from asr.writers import STREAMS, check_formats, format_transcript, to_text
from asr.writers.files import TranscriptFiles, recording_names

SUFFIXES = frozenset((*AUDIO_SUFFIXES, *CONTAINER_SUFFIXES))
"""What is taken for audio in a folder."""
READ = 0.1
"""Seconds of live audio that are waited for; more are taken at once if they are there."""


def transcribe(config: dict[str, Any], files: list[str]) -> None:
    """Transcribe files and folders; go on when one is broken, and exit with status 1 at the end.

    Raises:
        ConfigError: there is nothing to transcribe, or nowhere to write to.
    """
    formats = [config["format"]] if isinstance(config["format"], str) else config["format"] or []
    if config["live"]:
        listen(config, formats, files)
        return
    if not files:
        raise ConfigError("Which audio? Name files or folders: transcribe checkpoint=… a.wav talks/")
    check_formats(formats)
    found = {path: list(find_audio([path])) for path in dict.fromkeys(files)}
    paths = list(dict.fromkeys(audio for named in found.values() for audio in named))
    empty = [path for path in found if not found[path]]
    looked_for = f"(looked for {', '.join(sorted(SUFFIXES))})"
    if not paths:
        raise ConfigError(f"No audio files in {', '.join(files)} {looked_for}.")
    folder = None
    if config["output"]:
        folder = TranscriptFiles(config["output"], formats, found, config["overwrite"], config["channel"])
    elif len(formats) > 1 or (len(paths) > 1 and formats[0] not in STREAMS):
        several = "formats" if len(formats) > 1 else f"files as {formats[0]}"
        raise ConfigError(f"Where to? Several {several} need output=DIR, or output=beside: next to the audio.")
    for path in empty:
        print(f"error: {path}: the folder holds no audio files {looked_for}.", file=sys.stderr)
    failed = len(empty)
    from asr.progress import AudioProgress
    from asr.recordings import in_order

    recognizer = _load(config)
    names = recording_names(paths)

    def printed(transcript: Transcript) -> str:
        if formats == ["txt"]:
            return to_text(transcript)
        return format_transcript(formats[0], transcript, names[transcript.audio], config["channel"])

    with AudioProgress(paths) as progress:
        results = recognizer.transcribe_each(map(Utterance, paths), progress.advance)
        for _, result in results if folder else in_order(results):  # printed in the order in which they were named
            if isinstance(result, AsrError):
                failed += 1
                print(f"error: {result}", file=sys.stderr)
            elif folder:
                folder.write(result)
            elif (text := printed(result)) or formats[0] != "ctm":
                progress.print(text)
    if failed:
        what = f"{len(paths) + len(empty)} files{' and folders' if empty else ''}"
        print(f"error: {failed} of {what} could not be transcribed.", file=sys.stderr)
        raise SystemExit(1)


def _load(config: dict[str, Any]) -> Any:
    from asr.recognizer import load

    return load(
        config["checkpoint"], config["device"], config["decoder"], config["batch_seconds"], config["channel"],
        config["engine"], config["threads"], config["vad"], config["max_segment"], config["min_pause"],
    )  # fmt: skip


def find_audio(paths: list[str]) -> Iterator[str]:
    """The files named, and the audio files in the folders named, sorted; links are followed, but not in circles.

    A folder in them that cannot be read is yielded, too: reading it as audio tells what is wrong.
    """
    for path in paths:
        yield from _audio_below(path) if os.path.isdir(path) else [path]


def _audio_below(folder: str) -> list[str]:
    unreadable: list[str] = []
    files = files_below(folder, lambda error: unreadable.append(error.filename))
    return sorted(unreadable + [file for file in files if os.path.splitext(file)[1].lower() in SUFFIXES])


def listen(config: dict[str, Any], formats: list[str], files: list[str]) -> None:
    """Print the words of a live stream, 16-bit PCM on standard input, as they become final.

    As `txt` a line is what was said between two pauses, as `json` each word is an object on a line of its own.

    Raises:
        ConfigError: the recognizer cannot hear live, or an option does not fit.
    """
    if config["live"] not in (True, "chunked"):
        raise ConfigError(f"live={config['live']}: must be true, chunked or null.")
    if files not in ([], ["-"]):
        raise ConfigError(f"live={config['live']} hears standard input: leave {', '.join(files)} out.")
    if formats not in (["txt"], ["json"]) or config["output"]:
        raise ConfigError(f"live={config['live']} prints words: format=txt or json, without output=.")
    recognizer = _load(config)
    try:
        chunk = config["chunk"] if config["live"] == "chunked" else None
        stream = recognizer.stream(config["endpoint"], chunk, config["ahead"])
    except ConfigError as error:
        if config["live"] == "chunked" or not hasattr(recognizer.pipeline.decoder, "step"):
            raise
        late = config["chunk"] + config["ahead"]
        raise ConfigError(
            f"live=true: {error} live=chunked runs it in overlapping windows: then words come {late:g} s late "
            "(chunk= and ahead= change that), and may differ a little from those of the whole."
        ) from None
    rate = recognizer.sample_rate
    note = f"hearing 16-bit mono PCM at {rate} Hz on standard input, up to {stream.latency + READ:.2f} s behind it"
    print(note, file=sys.stderr)
    tokenizer = recognizer.pipeline.tokenizer
    printer = _print_json if formats == ["json"] else _Lines(config["endpoint"], tokenizer)
    try:
        for samples in read_pcm(sys.stdin.buffer, rate):
            printer(stream.step(samples).words)
    except KeyboardInterrupt:  # the microphone is off
        pass
    printer(stream.finish().words)
    if isinstance(printer, _Lines):
        printer.end()


def read_pcm(pipe: BinaryIO, rate: int) -> Iterator[np.ndarray]:
    """Little-endian 16-bit samples as they come, a tenth of a second of them or more → (N,) float32 in -1…1."""
    least = 2 * round(READ * rate)
    content = b""
    while more := pipe.read1(10 * least):  # type: ignore[attr-defined]
        content += more
        if len(content) >= least:
            whole = len(content) // 2 * 2
            yield np.frombuffer(content[:whole], "<i2").astype(np.float32) / 32768
            content = content[whole:]
    if len(content) > 1:
        yield np.frombuffer(content[: len(content) // 2 * 2], "<i2").astype(np.float32) / 32768


def _print_json(words: tuple[Word, ...]) -> None:
    for word in words:
        print(json.dumps(asdict(word) | {"confidence": round(word.confidence, 4)}, ensure_ascii=False), flush=True)


class _Lines:
    """Prints words, with a new line after each pause."""

    def __init__(self, pause: float | None, tokenizer: Tokenizer):
        self._pause, self._tokenizer, self._last = pause or float("inf"), tokenizer, Word("", 0.0, 0.0, 1.0)

    def __call__(self, words: tuple[Word, ...]) -> None:
        for word in words:
            text = word.text
            if self._last.text:
                is_new = word.start - self._last.end >= self._pause
                together = joined([self._last.text, text], self._tokenizer)
                text = f"\n{text}" if is_new else together[len(self._last.text) :]
            print(text, end="", flush=True)
            self._last = word

    def end(self) -> None:
        if self._last.text:
            print(flush=True)
