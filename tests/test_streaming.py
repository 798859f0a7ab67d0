"""Live recognition: what a stream gives beside what the whole gives, when it gives it, and what it keeps."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asr import recognizer as recognizer_module
from asr.cli import run
from asr.decoders import Beam, Greedy
from asr.encoders import Blstm, Lstm
from asr.errors import AudioError, ConfigError
from asr.featurizers import LogMel, Mfcc, Spectrogram
from asr.model import AcousticModel
from asr.pipeline import Pipeline
from asr.recognizer import Recognizer
from asr.segmentation import Segmenter
from asr.streaming import Stream
from asr.text import Normalizer
from asr.tokenizers import Characters
from asr.transcription import _Lines, read_pcm
from asr.types import Partial, Transcript, Word
from tests.test_align import FRAME, LETTERS, RATE, Tones, speak
from tests.test_recordings import close, sentences, talk

LETTER = Characters(LETTERS)


class LiveTones(Tones):
    """Tones, whose frames are independent of one another: it streams, a frame behind."""

    encoder = SimpleNamespace(lookahead=0)

    def start(self) -> list[torch.Tensor]:
        return [torch.zeros(1, 0)]

    def step(self, waveforms, state):
        waveforms = torch.cat([state[0], waveforms], 1)
        whole = waveforms.shape[1] // FRAME * FRAME
        state[0] = waveforms[:, whole:]
        return self(waveforms[:, :whole], torch.tensor([whole]))[0]

    def finish(self, state):
        return torch.zeros(1, 0, len(LETTERS) + 1)


def tones(decoder=None, model=None) -> Recognizer:
    pipeline = Pipeline(Normalizer(), LETTER, model or LiveTones(), decoder or Greedy(LETTER))
    return Recognizer(pipeline, "cpu", segmenter=Segmenter(max_segment=1e4))


def hear(stream, samples: np.ndarray, sizes=(800,)) -> list[Word]:
    """All words of a stream that comes in pieces of so many samples."""
    words, at = [], 0
    for size in itertools.cycle(sizes):
        words += stream.step(samples[at : at + size]).words
        at += size
        if at >= len(samples):
            return [*words, *stream.finish().words]


def conversation(count: int = 20, pause: float = 1.5) -> tuple[np.ndarray, list[str]]:
    texts = sentences(0, count)
    return talk(texts, [pause] * count)[0], texts


# --- emissions


def live_model(featurizer=LogMel, **options) -> AcousticModel:
    torch.manual_seed(0)
    stage = featurizer()
    conditioning = options.pop("self_conditioning", ())
    encoder = Lstm(stage.dim, layers=2, width=16, channels=3, **options)
    model = AcousticModel(stage, encoder, len(LETTER), self_conditioning=conditioning)
    model.normalization.set_statistics(torch.full((stage.dim,), -9.0), torch.full((stage.dim,), 2.0))
    with torch.no_grad():
        model.head.weight.mul_(5)
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [{}, {"featurizer": Mfcc, "lookahead": 0}, {"featurizer": Spectrogram, "subsampling": "stack", "stride": 3},
     {"self_conditioning": [1]}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("sizes", [(1600,), (37, 4000, 1), (50_000,)])
@torch.no_grad()
def test_a_model_gives_what_it_gives_of_the_whole(options, sizes):
    model = live_model(**options)
    random = torch.Generator().manual_seed(1)
    for samples in (1, 300, 511, 512, 16_000, 48_123):
        waveform = 0.1 * torch.randn(1, samples, generator=random)
        expected, _ = model(waveform, torch.tensor([samples]))
        state, parts, at = model.start(), [], 0
        for size in itertools.cycle(sizes):
            parts.append(model.step(waveform[:, at : at + size], state))
            at += size
            if at >= samples:
                break
        found = torch.cat([*parts, model.finish(state)], 1)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_emissions_come_no_later_than_promised():
    model = live_model(lookahead=3)
    recognizer = Recognizer(Pipeline(Normalizer(), LETTER, model, Greedy(LETTER)), "cpu")
    stream = recognizer.stream()
    assert stream.latency == pytest.approx(4 * 0.04)
    for heard in range(1, 40):
        stream.step(np.zeros(1600, np.float32))
        missing = heard * 0.1 - stream._frame * 0.04
        assert missing <= stream.latency + 0.04  # and a frame of the spectrum


def test_windows_of_a_model_that_hears_both_directions():
    torch.manual_seed(0)
    encoder = Blstm(80, layers=1, width=16, channels=2)
    for name, parameter in encoder.layers[0].named_parameters():
        if name.startswith("bias_ih"):
            parameter.data[16:32] = -3  # the forget gates: what lies beyond the context makes no difference
    model = AcousticModel(LogMel(), encoder, len(LETTER))
    with torch.no_grad():
        model.head.weight.mul_(20)
    recognizer = Recognizer(Pipeline(Normalizer(), LETTER, model, Greedy(LETTER)), "cpu")
    samples = np.random.default_rng(0).normal(size=20 * 16_000).astype(np.float32)
    whole = recognizer.transcribe((samples, 16_000))
    for sizes, chunk, ahead in (((1600,), 1.0, 1.0), ((123, 9999), 0.3, 1.2), ((500_000,), 2.0, 1.0)):
        stream = recognizer.stream(endpoint=None, chunk=chunk, ahead=ahead)
        assert stream.latency == chunk + ahead
        assert [word.text for word in hear(stream, samples, sizes)] == [word.text for word in whole.words]
    stream = recognizer.stream(chunk=0.5, ahead=0.5)
    for heard in range(1, 100):
        stream.step(samples[:1600])
        assert heard * 0.1 - stream._frame * 0.04 <= 1.0 + 0.1


# --- words


@pytest.mark.parametrize("decoder", [Greedy(LETTER), Beam(LETTER, beam=20)], ids=["greedy", "beam"])
@pytest.mark.parametrize("sizes", [(800,), (1, 319, 5000), (10**6,)])
def test_words_are_those_of_the_whole(decoder, sizes):
    texts = sentences(0, 20)
    samples, words = talk(texts, [1.52] * 20)  # whole frames
    recognizer = tones(decoder)
    whole = recognizer.transcribe((samples, RATE))
    # without pauses that end an utterance, they are those of one utterance, to the last digit
    assert hear(recognizer.stream(endpoint=None), samples, sizes) == list(whole.words)
    # with them, those of the texts between the pauses, at the same times
    found = hear(recognizer.stream(), samples, sizes)
    close(Transcript("", "", tuple(found), 0.0), words, 0.05)


def test_pauses_end_an_utterance():
    """What comes after a pause is decoded as if nothing had been before it: words are not joined over it."""
    samples = np.concatenate([speak("ba"), np.zeros(RATE), speak("dab")]).astype(np.float32)
    assert [word.text for word in hear(tones().stream(endpoint=None), samples)] == ["badab"]
    first, second = hear(tones().stream(endpoint=0.5), samples)
    assert (first.text, second.text) == ("ba", "dab")
    assert second.start == pytest.approx((2 * 4 * FRAME + RATE) / RATE, abs=0.04)
    [[alone]] = tones().recognize([np.concatenate([np.zeros(2 * 4 * FRAME + RATE), speak("dab")]).astype(np.float32)])
    assert alone.words == (second,)


@pytest.mark.parametrize("decoder", [Greedy(LETTER), Beam(LETTER, beam=20)], ids=["greedy", "beam"])
def test_words_come_while_they_are_spoken(decoder):
    samples, words = talk(sentences(1, 10), [2.0] * 10)
    stream, found, late = tones(decoder).stream(), [], []
    for heard in range(800, len(samples), 800):
        new = stream.step(samples[heard - 800 : heard]).words
        late += [heard / RATE - word.end for word in new]
        found += new
    assert [word.text for word in [*found, *stream.finish().words]] == [text for text, *_ in words]
    # a word is final at the latest when the pause after it is an endpoint, with 0.1 s of reading and a frame
    assert max(late) <= 1.0 + 0.1 + 0.08
    followers = {word.end: after.end for word, after in itertools.pairwise(found)}
    in_time = [delay <= max(0, followers.get(word.end, word.end) - word.end) + 0.2 for word, delay in zip(found, late)]  # noqa: B905
    assert sum(in_time) >= len(words) - 10, "inside a sentence, when the next word has begun"


def test_pauses_are_those_of_the_decoder():
    """With a penalty on blank: words of labels that are less likely than blank end a pause, and are followed by one."""
    labels = [0, *LETTER.encode("ab"), *[0] * 20, *LETTER.encode("ca"), *[0] * 5, *LETTER.encode("b"), *[0] * 20, 0]
    log_probs = np.log(np.full((len(labels), len(LETTER)), 0.01 / (len(LETTER) - 2), np.float32))
    log_probs[:, 0] = np.log(0.6)
    for row, label in zip(log_probs, labels, strict=True):
        row[label] = np.log(0.39 if label else 0.98)
    source = SimpleNamespace(latency=0.0, step=lambda samples: log_probs, finish=lambda: log_probs[:0])
    stream = Stream(source, Greedy(LETTER, blank_penalty=1.0), 0.04, endpoint=0.4)
    assert [word.text for word in stream.step(np.zeros(1)).words] == ["ab", "cab"]


def test_what_is_said_now_is_tentative():
    stream = tones().stream()
    assert stream.step(speak("bad ca")).tentative == "ca"
    assert stream.step(speak("b")).tentative == "cab"
    last = Word("cab", 0.64, 1.08, pytest.approx(1, abs=0.1))
    assert stream.step(np.zeros(2 * RATE, np.float32)) == Partial((last,), "")


def test_an_hour_leaves_no_more_than_a_minute():
    samples, texts = conversation()
    for decoder in (Greedy(LETTER), Beam(LETTER, beam=20)):
        stream, sizes, words = tones(decoder).stream(), [], 0
        for _ in range(3600 * RATE // len(samples)):
            words += len(stream.step(samples).words)
            sizes.append(len(pickle.dumps((stream._state, stream._source._state))))
        assert words >= len(sizes) * len(" ".join(texts).split()) - len(texts)
        assert max(sizes[1:]) <= 1.1 * max(sizes[:2])


def test_nothing_and_silence():
    for stream in (tones().stream(), tones().stream(chunk=1.0)):
        assert stream.finish().words == ()
    for stream in (tones().stream(), tones().stream(chunk=1.0)):
        assert hear(stream, np.zeros(5 * RATE, np.float32)) == []


# --- who cannot


class Deaf:
    def __call__(self, emissions):
        raise AssertionError


def test_why_a_recognizer_cannot_hear_live():
    def refused(recognizer, **options) -> str:
        with pytest.raises(ConfigError) as caught:
            recognizer.stream(**options)
        return str(caught.value)

    def model(encoder, **options) -> AcousticModel:
        return AcousticModel(LogMel(), encoder(80, layers=1, width=4, channels=2), len(LETTER), **options)

    assert "encoder Blstm needs the whole utterance" in refused(tones(model=model(Blstm)))
    assert "normalization=utterance" in refused(tones(model=model(Lstm, normalization="utterance")))
    assert "decoder Deaf has no step()" in refused(tones(decoder=Deaf()))
    assert "decoder Deaf has no step()" in refused(tones(decoder=Deaf()), chunk=1.0)
    assert "ahead=0.0 0.1 s or more" in refused(tones(), chunk=1.0, ahead=0.0)
    assert "endpoint=0" in refused(tones(), endpoint=0)
    unable = model(Lstm)
    unable.featurizer = torch.nn.Identity()
    unable.featurizer.sample_rate, unable.featurizer.frame_shift = RATE, 0.01
    assert "featurizer Identity has no step()" in refused(tones(model=unable))


# --- the command


@pytest.fixture
def live(monkeypatch, capsys):
    """`asr transcribe live=…` with PCM on standard input: what it prints."""

    def call(samples: np.ndarray, *arguments: str, recognizer: Recognizer | None = None) -> str:
        pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pcm)))
        monkeypatch.setattr(recognizer_module, "load", lambda *_: recognizer or tones())
        run("transcribe", ["checkpoint=x", *arguments])
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("mode", ["true", "chunked"])
def test_lines_and_json(live, mode):
    samples, texts = conversation(5)
    assert live(samples, f"live={mode}") == "".join(f"{text}\n" for text in texts)
    rows = [json.loads(line) for line in live(samples, f"live={mode}", "format=json", "-").splitlines()]
    assert [row["text"] for row in rows] == " ".join(texts).split()
    assert all(0 <= row["start"] < row["end"] <= len(samples) / RATE and row["confidence"] > 0 for row in rows)
    assert live(np.zeros(RATE), f"live={mode}") == ""


def test_lines_of_chinese_have_no_spaces(capsys):
    printer = _Lines(1.0, "character")
    for k, text in enumerate(("今", "天", "ok", "go", "好")):
        printer((Word(text, k + (k > 3), k + 0.5, 1.0),))
    printer.end()
    assert capsys.readouterr().out == "今天 ok go\n好\n"


def test_a_model_of_both_directions_is_offered_windows(live, capsys):
    model = AcousticModel(LogMel(), Blstm(80, layers=1, width=4, channels=2), len(LETTER))
    with pytest.raises(SystemExit):
        live(np.zeros(RATE), "live=true", "chunk=0.5", recognizer=tones(model=model))
    error = capsys.readouterr().err
    assert "Blstm needs the whole utterance" in error and "live=chunked" in error and "1.5 s late" in error
    live(np.zeros(RATE), "live=chunked", recognizer=tones(model=model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["live=maybe"], "live=maybe: must be true, chunked or null"),
        (["live=true", "a.wav"], "hears standard input: leave a.wav out"),
        (["live=true", "format=srt"], "format=txt or json"),
        (["live=true", "output=out"], "without output="),
    ],
)
def test_what_cannot_be(live, capsys, arguments, message):
    with pytest.raises(SystemExit):
        live(np.zeros(9), *arguments)
    assert message in capsys.readouterr().err


def test_the_end_of_the_microphone_is_the_end_of_the_stream(live, monkeypatch, capsys):
    def interrupted(pipe, rate):
        yield speak("bad cab")
        raise KeyboardInterrupt

    monkeypatch.setattr("asr.transcription.read_pcm", interrupted)
    assert live(np.zeros(9), "live=true") == "bad cab\n"


def test_integers_are_scaled():
    class Heard:
        latency = 0.0

        def step(self, samples: np.ndarray) -> np.ndarray:
            found.append(samples)
            return np.zeros((0, 3), np.float32)

    found: list[np.ndarray] = []
    stream = Stream(Heard(), Greedy(Characters("ab")), 0.04)  # type: ignore[arg-type]
    samples = np.array([-32768, 0, 1, 32767], np.int16)
    for given in (samples, samples / np.float32(32768), (samples / 32768).tolist()):
        stream.step(given)
        np.testing.assert_array_equal(found.pop(), samples / np.float32(32768))
    with pytest.raises(AudioError, match=r"shape \(4, 1\)"):
        stream.step(samples[:, None])


def test_samples_are_taken_as_they_come():
    class Pipe:
        """Gives some bytes at a time, also half samples."""

        def __init__(self, content: bytes, sizes: list[int]):
            self.content, self.sizes = content, itertools.cycle(sizes)

        def read1(self, most: int) -> bytes:
            size = min(most, next(self.sizes))
            found, self.content = self.content[:size], self.content[size:]
            return found

    samples = np.arange(-5000, 5000, dtype="<i2")
    for sizes in ([1], [333, 1, 7], [10**6]):
        parts = list(read_pcm(Pipe(samples.tobytes() + b"\0", sizes), 1000))  # type: ignore[arg-type]
        np.testing.assert_array_equal(np.concatenate(parts), samples / np.float32(32768))
        assert all(len(part) >= 100 for part in parts[:-1]) and max(map(len, parts)) <= 1100
