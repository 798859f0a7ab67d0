"""Audio files → transcripts, with a trained recognizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from asr.bundle import load_pipeline
from asr.data.audio import read_audio
from asr.engines import make_engine
from asr.errors import AsrError
from asr.pipeline import Pipeline
from asr.types import Emissions, Hypothesis, Transcript, Utterance


class Recognizer:
    """A trained pipeline, ready to transcribe.

    Args:
        pipeline: the stages, with trained weights.
        device: "auto" (CUDA if there is any), "cpu", "cuda", "cuda:1", …
        batch_seconds: the longest padded duration of what is recognized together.
        channel: of the audio files, from 0; `None` averages them.
        engine: what runs the model: "auto", "torch", "bf16", "onnx" or "int8"; see `asr.engines`.
        threads: of the engine on a CPU; `None`: as many as there are processors.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        device: str = "auto",
        batch_seconds: float = 120.0,
        channel: int | None = None,
        engine: str = "auto",
        threads: int | None = None,
    ):
        self.pipeline = pipeline
        self.engine = make_engine(pipeline.model, engine, device, threads)
        self.model: Any = self.engine.model
        self.device = self.engine.device
        self.batch_seconds, self.channel = batch_seconds, channel

    @property
    def sample_rate(self) -> int:
        return self.model.sample_rate

    def transcribe(self, audio: str | Path | Sequence[str | Path]) -> Transcript | list[Transcript]:
        """Transcribe one file, or several.

        Raises:
            AudioError: a file cannot be read; see `transcribe_each` to go on with the others.
        """
        paths = [audio] if isinstance(audio, (str, Path)) else list(audio)
        transcripts: list[Transcript] = [None] * len(paths)  # type: ignore[list-item]
        for index, result in self.transcribe_each(Utterance(str(path)) for path in paths):
            if isinstance(result, AsrError):
                raise result
            transcripts[index] = result
        return transcripts[0] if isinstance(audio, (str, Path)) else transcripts

    def transcribe_each(self, utterances: Iterable[Utterance]) -> Iterator[tuple[int, Transcript | AsrError]]:
        """Transcribe utterances, yielding each one's number with its transcript, or the error it met.

        They are read ahead by threads and recognized in batches of similar length, so the order differs from the
        input's.
        """
        for batch in self.read_batches(utterances):
            if isinstance(batch[0][2], AsrError):
                yield batch[0][0], batch[0][2]
                continue
            hypotheses = self.recognize([samples for *_, samples in batch])
            for (index, utterance, samples), found in zip(batch, hypotheses, strict=True):
                seconds = len(samples) / self.sample_rate
                best = found[0]
                yield index, Transcript(utterance.audio_filepath, best.text, best.words, seconds, tuple(found))

    def read_batches(self, utterances: Iterable[Utterance]) -> Iterator[list[tuple[int, Utterance, Any]]]:
        """Read utterances → batches of similar length: each one's number, the utterance, its samples (N,).

        One that cannot be read makes a batch of its own, with the error in the place of the samples.
        """
        for chunk in _chunks(self._read(utterances), 40 * self.batch_seconds * self.sample_rate):
            yield from ([item] for item in chunk if isinstance(item[2], AsrError))
            audible = [item for item in chunk if not isinstance(item[2], AsrError)]
            audible.sort(key=lambda item: len(item[2]))
            yield from _batches(audible, self.batch_seconds * self.sample_rate)

    def recognize(self, waveforms: Sequence[np.ndarray]) -> list[list[Hypothesis]]:
        """Decode a batch of (N,) float32 waveforms at `sample_rate`: the n-best list of each."""
        emissions = self.emissions(waveforms)
        decoder = self.pipeline.decoder
        return decoder(emissions.tensors() if getattr(decoder, "device", False) else emissions.numpy())

    def emissions(self, waveforms: Sequence[np.ndarray]) -> Emissions:
        """The log-probabilities of a batch of (N,) float32 waveforms at `sample_rate`.

        Returns:
            torch tensors on the device, or NumPy arrays where ONNX Runtime is the engine.
        """
        return self.engine(waveforms)

    def _read(self, utterances: Iterable[Utterance]) -> Iterator[tuple[int, Utterance, np.ndarray | AsrError]]:
        def read(item: tuple[int, Utterance]) -> tuple[int, Utterance, np.ndarray | AsrError]:
            _index, u = item
            try:
                return *item, read_audio(u.audio_filepath, self.sample_rate, u.offset, u.duration, self.channel)
            except AsrError as error:
                return *item, error

        with ThreadPoolExecutor(2) as pool:
            ahead: list = []
            for item in enumerate(utterances):
                ahead.append(pool.submit(read, item))
                if len(ahead) > 64:
                    yield ahead.pop(0).result()
            while ahead:
                yield ahead.pop(0).result()


def load(
    checkpoint: str | Path,
    device: str = "auto",
    decoder: Mapping[str, Any] | None = None,
    batch_seconds: float = 120.0,
    channel: int | None = None,
    engine: str = "auto",
    threads: int | None = None,
) -> Recognizer:
    """Load a trained recognizer.

    Args:
        checkpoint: a bundle's folder or zip, a run's folder, a `.ckpt`, an exported `.onnx`, or `hf://user/name`.
        device: "auto", "cpu", "cuda", …
        decoder: a decoder's config, instead of the bundle's own.
        batch_seconds, channel, engine, threads: as in `Recognizer`.

    Raises:
        CheckpointError: there is none, or it cannot be used.
    """
    return Recognizer(load_pipeline(checkpoint, decoder), device, batch_seconds, channel, engine, threads)


def _chunks(items: Iterable[tuple], samples: float) -> Iterator[list[tuple]]:
    """Lists of items with about so many samples in all, to be sorted by length."""
    chunk: list[tuple] = []
    total = 0
    for item in items:
        chunk.append(item)
        total += 0 if isinstance(item[2], AsrError) else len(item[2])
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
