"""Long recordings with a recognizer that hears tones: what is said when is known exactly, and so is its transcript."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import random
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

import asr
from asr import recognizer as recognizer_module
from asr.bundle import pipeline_config, save_bundle
from asr.decoders import Greedy
from asr.errors import AudioError
from asr.pipeline import Pipeline
from asr.recognizer import Recognizer
from asr.recordings import in_order, longest_pause
from asr.segmentation import Segmenter
from asr.text import Normalizer
from asr.tokenizers import Characters
from asr.types import Segment, Transcript, Utterance
from asr.vad import Everything
from tests.test_align import LETTERS, RATE, Tones, expected_words, speak
from tests.test_recognizer import CONFIG, assert_same, pipeline


def tones(segmenter: Segmenter | None = None, batch_seconds: float = 60.0, letters: str = LETTERS) -> Recognizer:
    tokenizer = Characters(letters)
    pipeline = Pipeline(Normalizer(), tokenizer, Tones(), Greedy(tokenizer))
    return Recognizer(pipeline, "cpu", batch_seconds, segmenter=segmenter)


def sentences(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    words = ("bad", "cab", "fed", "hag", "cage", "bead", "deaf", "each", "facade", "a", "dab")
    return [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(count)]


def talk(texts: list[str], pauses: list[float]) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Texts with so many seconds of soft noise before each, and their words with their times."""
    parts, words, at = [], [], 0
    for text, pause in zip(texts, pauses, strict=True):
        noise = 1e-3 * np.random.default_rng(at).standard_normal(round(pause * RATE))
        said = speak(text)
        words += expected_words(text, (at + len(noise)) / RATE)
        at += len(noise) + len(said)
        parts += [noise, said]
    return np.concatenate(parts).astype(np.float32), words


def close(found: Transcript, words: list[tuple[str, float, float]], tolerance: float) -> None:
    assert [word.text for word in found.words] == [text for text, _, _ in words]
    times = np.array([(word.start, word.end) for word in found.words])
    assert np.abs(times - np.array([place for _, *place in words])).max() <= tolerance


def consistent(found: Transcript) -> None:
    """Segments have all words, in order, at times that ascend."""
    assert found.text == " ".join(segment.text for segment in found.segments)
    assert found.words == tuple(itertools.chain.from_iterable(segment.words for segment in found.segments))
    for segment in found.segments:
        assert (segment.start, segment.end) == (segment.words[0].start, segment.words[-1].end)
        assert segment.hypotheses[0].text == segment.text and segment.hypotheses[0].words == segment.words
    assert all(a.end <= b.start + 1e-6 for a, b in itertools.pairwise(found.words))


# --- one recording


@pytest.mark.parametrize("batch_seconds", [1.0, 60.0])
def test_speech_between_pauses(tmp_path: Path, batch_seconds: float) -> None:
    texts = sentences(0, 40)
    draw = random.Random(1)
    samples, words = talk(texts, [draw.uniform(0.7, 3.0) for _ in texts])
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    found = tones(batch_seconds=batch_seconds).transcribe(tmp_path / "a.wav")
    assert found.duration == pytest.approx(len(samples) / RATE) and found.duration > 80
    assert [segment.text for segment in found.segments] == texts
    close(found, words, 0.05)  # a frame is 40 ms, and pieces begin between those of the whole
    consistent(found)
    assert found.hypotheses == ()


def test_speech_without_a_pause_as_if_it_were_one_piece(tmp_path: Path) -> None:
    [text] = [" ".join(sentences(2, 200))]
    samples, words = talk([text], [0.0])
    assert len(samples) > 400 * RATE
    whole = tones(Segmenter(max_segment=1000.0)).transcribe((samples, RATE))
    assert len(whole.segments) == 1 and whole.text == text
    for segmenter in (Segmenter(), Segmenter(Everything()), Segmenter(Everything(), max_segment=7.0)):
        found = tones(segmenter).transcribe((samples, RATE))
        assert found.text == text
        assert len(found.segments) >= len(samples) / RATE / segmenter.max_segment
        assert max(segment.end - segment.start for segment in found.segments) <= segmenter.max_segment
        close(found, [(word.text, word.start, word.end) for word in whole.words], 0.0011)  # the very same frames
        close(found, words, 0.02)
        consistent(found)


def test_a_longer_recording_in_the_batch_makes_no_difference() -> None:
    """Up to 10 s more than a segment are run and decoded whole, beside windows of others, too."""
    short, longer = (speak(" ".join(sentences(seed, 200)))[: seconds * RATE] for seed, seconds in ((4, 36), (5, 80)))
    recognizer = tones(Segmenter(Everything()), 120.0)
    alone, [beside, _] = recognizer.transcribe((short, RATE)), recognizer.transcribe([(short, RATE), (longer, RATE)])
    assert beside == alone and len(alone.segments) == 1
    assert alone.hypotheses[0].text == alone.text


def test_chinese_has_no_spaces_at_cuts() -> None:
    chinese = "天地玄黄宇宙洪荒日月盈昃辰宿列张"[: len(LETTERS)]
    text = "".join(letter for letter, _ in itertools.groupby("".join(sentences(6, 30)).replace(" ", "")))
    found = tones(letters=chinese).transcribe((np.concatenate([speak(text), np.zeros(RATE), speak(text)]), RATE))
    assert len(found.segments) > 2
    assert found.text == "".join(chinese[LETTERS.index(letter)] for letter in 2 * text)


def test_other_scripts_without_spaces() -> None:
    letters = "กขคงจฉชซณดตถทธนบ"[: len(LETTERS)]
    samples = np.concatenate([speak("bad"), np.zeros(60 * RATE), speak("cab")])
    found = tones(letters=letters).transcribe((samples, RATE))
    assert len(found.segments) == 2
    assert found.text == "".join(letters[LETTERS.index(letter)] for letter in "badcab")


def test_silence_and_noise_only() -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal(100 * RATE)
    for samples in (np.zeros(100 * RATE), noise):
        found = tones().transcribe((samples, RATE))
        assert (found.text, found.words, found.segments, found.duration) == ("", (), (), 100.0)


def test_a_short_recording_is_one_piece_and_one_segment() -> None:
    samples, words = talk(["bad cab fade"], [9.0])
    samples = np.pad(samples, (0, 20 * RATE))
    found = tones().transcribe((samples, RATE))
    [segment] = found.segments
    assert segment == Segment("bad cab fade", segment.start, segment.end, found.words, found.hypotheses)
    close(found, words, 0.02)
    consistent(found)
    [emissions] = tones().emissions([samples]).numpy().log_probs
    [[alone]] = tones().decode(tones().emissions([(samples, RATE)]))
    assert found.hypotheses == (alone,) and len(emissions) == len(samples) // 320


# --- several


def recordings(folder: Path) -> tuple[list[str], list[list[str]]]:
    """Twelve files, every other one long; the third breaks off in its second minute."""
    paths, texts = [], []
    for k in range(12):
        said = sentences(k, 30 if k % 2 else 1)
        samples, _ = talk(said, [1.0] * len(said))
        paths.append(str(folder / f"{k}.wav"))
        texts.append(said)
        soundfile.write(paths[-1], samples, RATE, subtype="FLOAT")
    samples, _ = talk(sentences(3, 60), [1.0] * 60)
    samples[100 * RATE] = np.nan
    soundfile.write(paths[3], samples, RATE, subtype="FLOAT")
    return paths, texts


@pytest.mark.parametrize("batch_seconds", [2.0, 300.0])
def test_files_of_all_lengths_together(tmp_path: Path, batch_seconds: float) -> None:
    paths, texts = recordings(tmp_path)
    recognizer, done, sizes = tones(batch_seconds=batch_seconds), [], []
    emissions = recognizer.emissions
    recognizer.emissions = lambda waveforms: sizes.append([*map(len, waveforms)]) or emissions(waveforms)  # type: ignore
    results = list(recognizer.transcribe_each(map(Utterance, paths), done.append))
    assert sorted(index for index, _ in results) == list(range(12))
    for index, result in results:
        if index == 3:
            assert isinstance(result, AudioError) and "3.wav: has samples that are not numbers" in str(result)
        else:
            assert [segment.text for segment in result.segments] == texts[index]
    assert max(len(batch) for batch in sizes) > 1 or batch_seconds == 2.0
    assert all(len(batch) == 1 or len(batch) * max(batch) <= batch_seconds * RATE for batch in sizes)
    good = sum(result.duration for index, result in results if index != 3)
    assert good - 0.01 <= sum(done) <= good + 100.01 and min(done) >= 0


def test_what_can_be_transcribed(tmp_path: Path) -> None:
    paths, _ = recordings(tmp_path)
    recognizer, good = tones(), paths[:3]
    expected = recognizer.transcribe(good)
    assert [found.audio for found in expected] == good
    assert recognizer.transcribe(tuple(map(Path, good))) == expected  # three paths: no array
    assert recognizer.transcribe(tuple(good[:2])) == expected[:2]
    assert [recognizer.transcribe(path) for path in good] == expected
    arrays = [soundfile.read(path, dtype="float32") for path in good]
    stereo = [(np.stack([samples, samples], 1), rate) for samples, rate in arrays]
    for found in (recognizer.transcribe(arrays), recognizer.transcribe(stereo)):
        assert [one.words for one in found] == [one.words for one in expected]
        assert [one.audio for one in found] == ["", "", ""]
    with pytest.raises(AudioError, match=r"ndarray: is no audio\. Give the path of a file, or an array with its rate"):
        recognizer.transcribe([arrays[0][0]])
    with pytest.raises(AudioError, match=r"3\.wav"):
        recognizer.transcribe(paths)


def test_an_iterator_gives_an_iterator(tmp_path: Path) -> None:
    paths, _ = recordings(tmp_path)
    handed = 0

    def endless() -> Iterator[str]:
        nonlocal handed
        for path in itertools.cycle(paths[:3]):
            handed += 1
            yield path

    found = tones(batch_seconds=5.0).transcribe(endless())
    assert [next(found).audio for _ in range(100)] == (paths[:3] * 34)[:100]
    assert handed < 250
    found.close()


# --- threads, processes, memory


def test_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    paths, _ = recordings(tmp_path)
    recognizer, good = tones(), [*paths[:3], *paths[4:]]
    expected = recognizer.transcribe(good)
    barrier = threading.Barrier(4)

    def work(_: int) -> list[Transcript]:
        barrier.wait()
        return recognizer.transcribe(good)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [expected] * 4


def test_a_recognizer_can_be_handed_to_a_process(tmp_path: Path) -> None:
    paths, _ = recordings(tmp_path)
    recognizer = tones()
    assert pickle.loads(pickle.dumps(recognizer)).transcribe(paths[:3]) == recognizer.transcribe(paths[:3])


def test_a_pool_of_processes(tmp_path: Path) -> None:
    save_bundle(tmp_path / "bundle", pipeline(), pipeline_config(CONFIG), "")
    paths, _ = recordings(tmp_path)
    recognizer = asr.load(tmp_path / "bundle", "cpu")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(recognizer.transcribe, paths[:3]))
    for there, here in zip(found, recognizer.transcribe(paths[:3]), strict=True):
        assert_same(there, here)


def test_hours_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of an hour that is never there as a whole; what is held at most does not grow with the length."""
    texts = sentences(5, 12)
    minute, _ = talk(texts, [1.0] * 12)
    minute = np.pad(minute, (0, 60 * RATE - len(minute) % (60 * RATE)))
    peaks = []
    for minutes in (5, 20):
        monkeypatch.setattr(recognizer_module, "read_blocks", lambda *_: itertools.repeat(minute, minutes))  # noqa: B023
        tracemalloc.start()
        found = tones(batch_seconds=10.0).transcribe("long.wav")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert [segment.text for segment in found.segments] == texts * minutes
    assert peaks[1] < peaks[0] + 10e6 and peaks[1] < 100e6


# --- parts


def test_the_longest_pause_ahead_of_a_word() -> None:
    def pause(path: list[int], word_starts: list[bool]) -> int:
        return longest_pause(np.log(np.eye(4)[path] + 1e-3), word_starts)

    path = [1, 0, 0, 0, 2, 0, 0, 3, 0, 0, 2, 0, 0, 0, 3]
    assert pause(path, [False, False, True, False]) == 9  # not the longer ones before other labels, or too early
    assert pause(path, [False, False, False, True]) == 12
    assert pause(path, [False] * 4) == 12
    assert pause([1, 1, 1, 2, 1, 1], [False, False, True, False]) == 3  # a word that follows at once
    assert pause([1, 1, 3, 3], [False] * 4) == 4


def test_in_order() -> None:
    order = [3, 0, 1, 4, 2]
    assert list(in_order((k, str(k)) for k in order)) == [(k, str(k)) for k in range(5)]
