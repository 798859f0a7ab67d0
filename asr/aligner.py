"""Transcripts → the places of their words in the audio, with a trained recognizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from asr.data.audio import audio_duration, read_blocks
from asr.data.containers import STDIN
from asr.decoders.alignment import align as align_labels
from asr.decoders.greedy import collect_words
from asr.errors import AsrError, AudioError, DataError
from asr.pipeline import Pipeline
from asr.recognizer import Recognizer, load
from asr.recordings import Recording
from asr.segmentation import CONTEXT, WINDOW, long_emissions
from asr.types import AlignedTranscript, Utterance, Word


def align(recognizer: Recognizer | str | Path, audio: str | Path, text: str) -> AlignedTranscript:
    """Find the words of a text in the audio file in which they are said.

    Args:
        recognizer: a loaded one, or its checkpoint.
        audio: of any length; see `long_emissions` and `asr.decoders.alignment` for how an hour fits into memory.
        text: all that is said in it, as people write it.

    Raises:
        AudioError: the file cannot be read.
        DataError: the text has a character or word without a label, or is too long for the audio.

    >>> recognizer = asr.load("runs/demo/bundle")  # doctest: +SKIP
    >>> asr.align(recognizer, "a.wav", "Call seven.").words[0]  # doctest: +SKIP
    Word(text='call', start=0.28, end=0.44, confidence=0.98)
    """
    loaded = recognizer if isinstance(recognizer, Recognizer) else load(recognizer)
    [(_, result)] = align_each(loaded, [Utterance(str(audio), text)])
    if isinstance(result, AsrError):
        raise result
    return result


def align_each(
    recognizer: Recognizer, utterances: Iterable[Utterance]
) -> Iterator[tuple[int, AlignedTranscript | AsrError]]:
    """Align utterances with their texts, yielding each one's number with its words, or the error it met.

    Times are from the utterance's start; those of words and their confidences are defined as in greedy decoding
    (`collect_words`). The score is the logarithm of how much less likely the text's best path is than the best path
    of all, per label of the text: 0 if the recognizer hears the text itself. Words that are wrong, missing or too
    many lower it, noise hardly does. The order differs from the input's, as in `Recognizer.transcribe_each`.
    """
    for is_long, group in groupby(enumerate(utterances), lambda item: _is_long(item[1])):
        if is_long:
            for index, utterance in group:
                yield index, _align_long(recognizer, utterance)
            continue
        numbers, short = zip(*group, strict=True)
        for batch in recognizer.read_batches(short):
            if isinstance(batch[0][2], AsrError):
                yield numbers[batch[0][0]], batch[0][2]
                continue
            emissions = recognizer.emissions([samples for *_, samples in batch]).numpy()
            for row, (k, utterance, samples) in enumerate(batch):
                part = np.asarray(emissions.log_probs)[row, : emissions.lengths[row]]
                duration = partial(float, len(samples) / recognizer.sample_rate)
                yield numbers[k], _align(recognizer, utterance, [part], duration)


def _is_long(utterance: Utterance) -> bool:
    """Whether an utterance takes several windows."""
    if utterance.audio_filepath == STDIN:  # its length is known when it was read, and it is read only once
        return True
    try:
        seconds = utterance.duration or audio_duration(utterance.audio_filepath) - utterance.offset
    except AsrError:  # it will come again when the audio is read
        return False
    return seconds > WINDOW + 2 * CONTEXT


def _align_long(recognizer: Recognizer, u: Utterance) -> AlignedTranscript | AsrError:
    rate = recognizer.sample_rate
    recording = Recording(u.audio_filepath, rate, recognizer.model.frame_seconds)
    blocks = recording.count(read_blocks(u.audio_filepath, rate, u.offset, u.duration, recognizer.channel))
    return _align(recognizer, u, long_emissions(recognizer, blocks), lambda: recording.seconds)


def _align(
    recognizer: Recognizer, utterance: Utterance, parts: Iterable[np.ndarray], seconds: Callable[[], float]
) -> AlignedTranscript | AsrError:
    """Align an utterance's emissions, which come in parts (T', V), with its text.

    Args:
        seconds: its duration, known when all parts have come.
    """
    tokenizer = recognizer.pipeline.tokenizer
    frame_seconds = recognizer.model.frame_seconds
    try:
        if utterance.text is None:
            raise DataError("There is no 'text' to align.")
        labels = _encode(recognizer.pipeline, utterance.text)
        used = np.unique([0, *labels])  # an hour of all labels may be too much for the memory
        log_probs, heard, peaks = zip(*((p[:, used], p.argmax(1), p.max(1)) for p in parts), strict=True)
        found = align_labels(np.concatenate(log_probs), np.searchsorted(used, labels))
    except AudioError as error:  # it names the file
        return error
    except AsrError as error:
        return type(error)(f"{utterance.audio_filepath}: {error}")

    duration = seconds()
    end = round(duration, 3)

    def place(word: Word) -> Word:  # the last frame may reach beyond the audio
        return Word(word.text, min(word.start, end), min(word.end, end), word.confidence)

    words = collect_words(labels, found.starts, found.ends, found.log_posteriors, tokenizer, frame_seconds)
    spelled = [
        Word(text, round(start * frame_seconds, 3), round(end * frame_seconds, 3), float(np.exp(log_posterior)))
        for label, start, end, log_posterior in zip(
            labels, found.starts.tolist(), found.ends.tolist(), found.log_posteriors, strict=True
        )
        if (text := tokenizer.decode([label]).strip())
    ]
    best = float(np.concatenate(peaks).sum(dtype=np.float64))
    return AlignedTranscript(
        audio=utterance.audio_filepath,
        text=tokenizer.decode(labels).strip(),
        words=tuple(map(place, words)),
        duration=duration,
        labels=tuple(map(place, spelled)),
        score=min(0.0, (found.score - best) / max(1, len(labels))),
        heard=_collapse(np.concatenate(heard), tokenizer),
    )


def _encode(pipeline: Pipeline, transcript: str) -> list[int]:
    text = pipeline.text(transcript)
    try:
        return pipeline.tokenizer.encode(text)
    except DataError:
        for word in text.split():  # a message that quotes the word, not the transcript of an hour
            pipeline.tokenizer.encode(word)
        raise


def _collapse(path: np.ndarray, tokenizer) -> str:
    """The text of a path (T,): repetitions merged, blanks removed."""
    runs = path[np.flatnonzero(np.diff(path, prepend=-1))]
    return tokenizer.decode([int(label) for label in runs[runs != 0]]).strip()
