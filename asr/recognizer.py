"""Audio files → transcripts, with a trained recognizer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np

from asr.bundle import load_pipeline
from asr.data.audio import array_blocks, read_audio, read_blocks
from asr.engines import make_engine
from asr.errors import AsrError, AudioError
from asr.machine import give_back, return_large_blocks
from asr.pipeline import Pipeline
from asr.plugins import instantiate, named_config
from asr.recordings import Recording, in_order
from asr.segmentation import PAUSE, WINDOW, Piece, Segmenter
from asr.streaming import ENDPOINT, Stream, make_stream
from asr.types import Emissions, Hypothesis, Transcript, Utterance

Audio: TypeAlias = str | Path | tuple[np.ndarray, int]
"""A file, or samples (N,) or (N, channels) with their rate in Hz."""
_Item: TypeAlias = tuple[int, Recording, Piece | AsrError | None]
"""A recording's number, and the next piece of it, the error that it ends with, or its end."""
CHUNK = 10
"""Batches whose pieces are sorted by length together."""
TRIM = 5
"""Batches after which free memory is given back."""
READ_AHEAD = 16
"""Recordings that are opened before their turn."""


class Recognizer:
    """A trained pipeline, ready to transcribe. Threads may share it, and it can be pickled for other processes.

    Args:
        pipeline: the stages, with trained weights.
        device: "auto" (CUDA if there is any), "cpu", "cuda", "cuda:1", …
        batch_seconds: the longest padded duration of what is recognized together.
        channel: of the audio files, from 0; `None` averages them.
        engine: what runs the model: "auto", "torch", "bf16", "onnx" or "int8"; see `asr.engines`.
        threads: of the engine on a CPU; `None`: as many as there are processors.
        segmenter: cuts long recordings; by default at pauses that are found by energy.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        device: str = "auto",
        batch_seconds: float = 120.0,
        channel: int | None = None,
        engine: str = "auto",
        threads: int | None = None,
        segmenter: Segmenter | None = None,
    ):
        self.pipeline = pipeline
        self.engine = make_engine(pipeline.model, engine, device, threads)
        self.model: Any = self.engine.model
        self.device = self.engine.device
        self.batch_seconds, self.channel = batch_seconds, channel
        self.segmenter = segmenter or Segmenter()

    @property
    def sample_rate(self) -> int:
        return self.model.sample_rate

    @overload
    def transcribe(self, audio: Audio) -> Transcript: ...  # type: ignore[overload-overlap]
    @overload
    def transcribe(self, audio: Iterator[Audio]) -> Iterator[Transcript]: ...  # type: ignore[overload-overlap]
    @overload
    def transcribe(self, audio: Iterable[Audio]) -> list[Transcript]: ...
    def transcribe(self, audio: Any) -> Transcript | list[Transcript] | Iterator[Transcript]:
        """Transcribe a recording of any length, or several.

        Args:
            audio: a file; an array with its rate; a list of these; or an iterator over them, which is read ahead.

        Returns:
            a transcript; a list of them in the same order; or an iterator over them.

        Raises:
            AudioError: a file cannot be read; see `transcribe_each` to go on with the others.

        >>> import asr, soundfile
        >>> recognizer = asr.load("bundle")
        >>> transcript = recognizer.transcribe("talk.wav")
        >>> print(transcript.duration, [segment.text for segment in transcript.segments])
        2.0 [...]
        >>> samples, rate = soundfile.read("talk.wav")
        >>> recognizer.transcribe((samples, rate)).words == transcript.words
        True
        >>> [found.audio for found in recognizer.transcribe(["talk.wav", "other.flac"])]
        ['talk.wav', 'other.flac']
        """
        if isinstance(audio, (str, Path)) or _is_waveform(audio):
            return next(self._transcripts([audio]))
        found = self._transcripts(audio)
        return found if isinstance(audio, Iterator) else list(found)

    def _transcripts(self, audio: Iterable[Audio]) -> Iterator[Transcript]:
        for _, result in in_order(self.transcribe_each(audio)):
            if isinstance(result, AsrError):
                raise result
            yield result

    def transcribe_each(
        self, utterances: Iterable[Utterance | Audio], progress: Callable[[float], Any] | None = None
    ) -> Iterator[tuple[int, Transcript | AsrError]]:
        """Transcribe recordings, yielding each one's number with its transcript, or the error it met.

        They are read ahead by threads, cut if they are long (`Segmenter`), and the pieces of all of them recognized in
        batches of similar length, so the order differs from the input's.

        Args:
            utterances: files, segments of files, or arrays with their rates.
            progress: called with the seconds of audio that have been done since its last call.
        """
        progress = progress or (lambda seconds: None)
        batches = 0

        def finish(recording: Recording) -> Transcript:
            progress(recording.remaining)
            return recording.transcript()

        for chunk in _chunks(self._read_pieces(utterances), CHUNK * self.batch_seconds * self.sample_rate):
            pieces = [item for item in chunk if isinstance(item[2], Piece)]
            for index, recording, piece in chunk:
                if isinstance(piece, AsrError):
                    recording.error = piece
                    yield index, piece
                elif piece is None:
                    recording.ended = True
                    if recording.complete:  # nobody speaks in it, or in its last minutes
                        yield index, finish(recording)
            pieces = [item for item in pieces if item[1].error is None]
            pieces.sort(key=lambda item: len(item[2]))
            for batch in _batches(pieces, self.batch_seconds * self.sample_rate):
                self._recognize_pieces(batch)
                batches += 1
                if batches % TRIM == 0:
                    give_back()
                progress(sum(recording.advance(piece) for _, recording, piece in batch))
                for index, recording in {index: recording for index, recording, _ in batch}.items():
                    if recording.complete:
                        yield index, finish(recording)
            chunk.clear()  # ahead of reading the next one
            pieces.clear()

    def read_batches(self, utterances: Iterable[Utterance]) -> Iterator[list[tuple[int, Utterance, Any]]]:
        """Read utterances → batches of similar length: each one's number, the utterance, its samples (N,).

        One that cannot be read makes a batch of its own, with the error in the place of the samples.
        """
        for chunk in _chunks(self._read(utterances), CHUNK * self.batch_seconds * self.sample_rate):
            yield from ([item] for item in chunk if isinstance(item[2], AsrError))
            audible = [item for item in chunk if not isinstance(item[2], AsrError)]
            audible.sort(key=lambda item: len(item[2]))
            yield from _batches(audible, self.batch_seconds * self.sample_rate)

    def recognize(self, waveforms: Sequence[np.ndarray]) -> list[list[Hypothesis]]:
        """Decode a batch of (N,) float32 waveforms at `sample_rate`: the n-best list of each."""
        return self.decode(self.emissions(waveforms))

    def decode(self, emissions: Emissions) -> list[list[Hypothesis]]:
        """The n-best list of each utterance."""
        decoder = self.pipeline.decoder
        return decoder(emissions.tensors() if getattr(decoder, "device", False) else emissions.numpy())

    def emissions(self, audio: Sequence[np.ndarray | Audio]) -> Emissions:
        """The log-probabilities of a batch, each run in one piece.

        Args:
            audio: (N,) float32 waveforms at `sample_rate`, or what `transcribe` takes.

        Returns:
            torch tensors on the device, or NumPy arrays where ONNX Runtime is the engine.

        >>> import asr
        >>> emissions = asr.load("bundle").emissions(["talk.wav"])
        >>> frames, labels = emissions.log_probs[0].shape
        >>> emissions.frame_seconds
        0.04
        """
        return self.engine(
            [one if isinstance(one, np.ndarray) else np.concatenate(list(self._blocks(one))) for one in audio]
        )

    def stream(self, endpoint: float | None = ENDPOINT, chunk: float | None = None, ahead: float = 1.0) -> Stream:
        """Begin to hear live: `step(samples)` and `finish()` give the words that have become final.

        Args:
            endpoint: seconds of pause after which what was said is final; `None`: the decoder alone decides.
            chunk: seconds; run the model in windows of so much, as one that hears both directions has to be.
            ahead: seconds of context after each window.

        Raises:
            ConfigError: the model or the decoder needs the whole utterance, which says why.
        """
        return make_stream(self, endpoint, chunk, ahead)

    def _recognize_pieces(self, batch: list[tuple[int, Recording, Piece]]) -> None:
        """Run a batch of pieces, and decode what is complete with them."""
        emissions = self.emissions([piece.samples for *_, piece in batch])
        places = [(recording, piece.start, len(piece) / self.sample_rate) for _, recording, piece in batch]
        if not all(piece.whole for *_, piece in batch):
            arrays = emissions.numpy()
            places, rows = [], []
            for (_, recording, piece), found, length in zip(batch, arrays.log_probs, arrays.lengths, strict=True):
                found = np.asarray(found)[:length]
                if piece.whole:
                    places.append((recording, piece.start, len(piece) / self.sample_rate))
                    rows.append(found)
                    continue
                for start, joined in recording.join(piece, found):
                    places.append((recording, start, len(joined) * arrays.frame_seconds))
                    rows.append(joined)
            emissions = self._pad(rows) if rows else emissions
        hypotheses = self.decode(emissions) if places else []
        for (recording, start, seconds), found in zip(places, hypotheses, strict=True):
            recording.add(start, seconds, found)

    def _pad(self, rows: list[np.ndarray]) -> Emissions:
        """(T, V) emissions of several utterances as a batch."""
        lengths = np.array([len(row) for row in rows])
        padded = np.zeros((len(rows), lengths.max(), rows[0].shape[1]), np.float32)
        for k, row in enumerate(rows):
            padded[k, : len(row)] = row
        return Emissions(padded, lengths, self.model.frame_seconds)

    def _read(self, utterances: Iterable[Utterance]) -> Iterator[tuple[int, Utterance, np.ndarray | AsrError]]:
        def read(item: tuple[int, Utterance]) -> tuple[int, Utterance, np.ndarray | AsrError]:
            _index, u = item
            try:
                return *item, read_audio(u.audio_filepath, self.sample_rate, u.offset, u.duration, self.channel)
            except AsrError as error:
                return *item, error

        with ThreadPoolExecutor(2) as pool:
            yield from _ahead(pool, read, enumerate(utterances))

    def _read_pieces(self, utterances: Iterable[Utterance | Audio]) -> Iterator[_Item]:
        def following(pieces: Iterator[Piece]) -> Piece | AsrError | None:
            try:
                return next(pieces, None)
            except AsrError as error:
                return error

        def begin(item: tuple[int, Any]) -> tuple[int, Recording, list[Piece | AsrError | None], Iterator[Piece]]:
            index, source = item[0], _source(item[1])
            frame_seconds = self.model.frame_seconds
            name = source.audio_filepath if isinstance(source, Utterance) else ""
            recording = Recording(
                name, self.sample_rate, frame_seconds, self.segmenter.max_segment, self.pipeline.tokenizer
            )
            pieces = self.segmenter.split(recording.count(self._blocks(source)), self.sample_rate, frame_seconds)
            first = following(pieces)
            whole = isinstance(first, Piece) and first.whole
            return index, recording, [first, following(pieces)] if whole else [first], pieces

        with ThreadPoolExecutor(2) as pool:
            for index, recording, found, pieces in _ahead(pool, begin, enumerate(utterances)):
                while found:
                    piece = found.pop(0)
                    more = None
                    if isinstance(piece, Piece):
                        recording.pieces += 1
                        if recording.pieces == 2:
                            return_large_blocks()
                        more = None if found else pool.submit(following, pieces)  # while the caller is at work
                    yield index, recording, piece
                    found += [more.result()] if more else []

    def _blocks(self, source: Utterance | Audio) -> Iterator[np.ndarray]:
        if isinstance(source, tuple):
            return array_blocks(*source, self.sample_rate, self.channel)
        u = source if isinstance(source, Utterance) else Utterance(str(source))
        return read_blocks(u.audio_filepath, self.sample_rate, u.offset, u.duration, self.channel)


def load(
    checkpoint: str | Path,
    device: str = "auto",
    decoder: str | Mapping[str, Any] | None = None,
    batch_seconds: float = 120.0,
    channel: int | None = None,
    engine: str = "auto",
    threads: int | None = None,
    vad: str | Mapping[str, Any] | None = "energy",
    max_segment: float = WINDOW,
    min_pause: float = PAUSE,
) -> Recognizer:
    """Load a trained recognizer.

    Args:
        checkpoint: a bundle's folder or zip, a run's folder, a `.ckpt`, an exported `.onnx`, or `hf://user/name`.
        device: "auto", "cpu", "cuda", …
        decoder: a decoder's name or config, instead of the bundle's own.
        batch_seconds, channel, engine, threads: as in `Recognizer`.
        vad: what finds the pauses of long recordings: a name or config of the group `vad`; `None` finds none.
        max_segment, min_pause: seconds, as in `Segmenter`.

    Raises:
        CheckpointError: there is none, or it cannot be used.
    """
    config = named_config("vad", vad or "none") if vad is None or isinstance(vad, str) else vad
    segmenter = Segmenter(instantiate(config, "vad"), max_segment, min_pause)
    if isinstance(decoder, str):
        decoder = named_config("decoder", decoder)
    pipeline = load_pipeline(checkpoint, decoder)
    return Recognizer(pipeline, device, batch_seconds, channel, engine, threads, segmenter)


def _is_waveform(audio: Any) -> bool:
    """Whether it is an array with its rate, and not two files."""
    return isinstance(audio, tuple) and len(audio) == 2 and not isinstance(audio[0], (str, Path, tuple))


def _source(audio: Utterance | Audio) -> Utterance | tuple[np.ndarray, int]:
    if isinstance(audio, (Utterance, tuple)):
        return audio
    if isinstance(audio, (str, Path)):
        return Utterance(str(audio))
    raise AudioError(f"{type(audio).__name__}: is no audio. Give the path of a file, or an array with its rate in Hz.")


def _ahead(pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """The function's results in order, computed ahead by the pool's threads."""
    ahead: deque[Future] = deque()
    for item in items:
        ahead.append(pool.submit(function, item))
        if len(ahead) > READ_AHEAD:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _chunks(items: Iterable[tuple], samples: float) -> Iterator[list[tuple]]:
    """Lists of items with about so many samples in all, to be sorted by length."""
    chunk: list[tuple] = []
    total = 0
    for item in items:
        chunk.append(item)
        total += len(item[2]) if isinstance(item[2], (np.ndarray, Piece)) else 0
        if total >= samples:
            yield chunk
            chunk, total = [], 0
    yield chunk


def _batches(items: list[tuple], samples: float) -> Iterator[list[tuple]]:
    """Lists of items, which are sorted by length, of at most so many samples when padded."""
    batch: list[tuple] = []
    for item in items:
        if batch and (len(batch) + 1) * len(item[2]) > samples:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
