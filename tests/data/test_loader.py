import gc
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from asr import signals
from asr.data import loader as loading
from asr.data.loader import LeftOut, Manifests, SpeechDataset, SpeechLoader
from asr.data.sampler import BucketSampler
from asr.errors import AudioError, DataError, TrainingError
from asr.types import Batch


def encode(text: str) -> list[int]:
    if "?" in text:
        raise DataError("no label for '?'")
    return [" ab".index(character) for character in text]


@pytest.fixture
def make():
    made = []

    def loader(path, workers=0, rank=0, world_size=1, group=1, batches=None, **options) -> SpeechLoader:
        manifests = Manifests([str(path)])
        sampler = batches or BucketSampler(manifests.seconds, 2.0, group, rank=rank, world_size=world_size, seed=1)
        dataset = SpeechDataset(manifests, encode, 16000)
        made.append(SpeechLoader(dataset, sampler, num_workers=workers, persistent_workers=workers > 0, **options))
        return made[-1]

    yield loader
    for started in made:
        if started._iterator is not None:
            started._iterator._shutdown_workers()  # garbage collection would do it, in the middle of another test


def equal(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(
        a.step_utterances == b.step_utterances
        and all(
            torch.equal(getattr(a, name), getattr(b, name))
            for name in ("waveforms", "lengths", "labels", "label_lengths", "indices")
        )
        for a, b in zip(one, two, strict=True)
    )


def test_batches_hold_the_utterances(make, corpus):
    path, waveforms = corpus
    seen = []
    for batch in make(path):
        assert len(batch) == batch.step_utterances == len(batch.lengths)
        assert batch.waveforms.shape == (len(batch), batch.lengths.max())
        for row, index in enumerate(batch.indices.tolist()):
            length = int(batch.lengths[row])
            np.testing.assert_array_equal(batch.waveforms[row, :length], waveforms[index])
            assert not batch.waveforms[row, length:].any()
            labels = batch.labels[row, : batch.label_lengths[row]].tolist()
            assert labels == encode("ab" * (1 + index // 4))
            seen.append(index)
    assert sorted(seen) == list(range(12))


def test_workers_make_no_difference(make, corpus):
    alone, two = make(corpus[0]), make(corpus[0], workers=2)
    for epoch in (0, 1):
        for loader in (alone, two):
            loader.sampler.set_epoch(epoch)
        batches = list(alone)
        assert equal(batches, list(two)) and len(batches) == len(alone) == len(two)


@pytest.mark.parametrize("workers, ranks", [(0, 1), (2, 1), (0, 2)])
def test_resumes_from_its_state(make, corpus, workers, ranks):
    """What workers have read ahead is not counted: the state is that of the batches handed out."""
    options = {"rank": ranks - 1, "world_size": ranks, "group": 2}
    expected = list(make(corpus[0], **options))
    loader = make(corpus[0], workers, **options)
    batches = iter(loader)
    head = [next(batches) for _ in range(2)]
    assert loader.state_dict()["position"] == 2 * ranks
    resumed = make(corpus[0], workers, **options)
    resumed.load_state_dict(loader.state_dict())
    resumed.sampler.set_epoch(0)
    tail = list(resumed)
    assert tail and equal(expected, head + tail)


def test_resume_reads_no_past_audio(make, corpus):
    loader = make(corpus[0])
    batches = iter(loader)
    past = [int(k) for _ in range(3) for k in next(batches).indices]
    for k in past:
        (corpus[0].parent / f"{k}.wav").unlink()
    resumed = make(corpus[0])
    resumed.load_state_dict(loader.state_dict())
    assert sorted([*past, *(int(k) for batch in resumed for k in batch.indices)]) == list(range(12))


def test_ranks_see_what_one_accumulates(make, corpus):
    whole = list(make(corpus[0], group=2))
    ranks = [list(make(corpus[0], rank=r, world_size=2, group=2)) for r in range(2)]
    assert equal(whole, [batch for step in zip(*ranks, strict=True) for batch in step])


def test_empty_micro_batch(make, corpus):
    dataset = make(corpus[0]).dataset
    batch, _ = dataset[[(-1, 5)]]
    assert len(batch) == 0 and batch.step_utterances == 5
    assert batch.waveforms.shape == batch.labels.shape == (0, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_come_bare(make, corpus, workers):
    path = corpus[0]
    (path.parent / "5.wav").write_text("no audio")
    with pytest.raises(AudioError) as caught:
        list(make(path, workers))
    assert str(caught.value).startswith(f"{path.parent}/5.wav: cannot be read as audio")
    assert "Traceback" not in str(caught.value) and "worker" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_transcript_errors_come_bare(make, tmp_path, noise, manifest, workers):
    noise(tmp_path / "a.wav")
    path = manifest(tmp_path / "m.jsonl", {"audio_filepath": "a.wav", "text": "a?", "duration": 0.5})
    with pytest.raises(DataError, match=r"^no label for '\?'$"):
        list(make(path, workers))


def test_segments_and_channels(tmp_path, noise, manifest):
    samples = noise(tmp_path / "a.wav", 2.0, channels=2, subtype="FLOAT")
    segment = {"audio_filepath": "a.wav", "duration": 0.5, "text": None}
    path = manifest(tmp_path / "m.jsonl", segment | {"offset": 0.25}, segment | {"offset": 1.25})
    dataset = SpeechDataset(Manifests([str(path)]), encode, 16000, channel=1)
    batch, _ = dataset[[(1, 2), (0, 2)]]
    np.testing.assert_array_equal(batch.waveforms[0], samples[20000:28000, 1])
    np.testing.assert_array_equal(batch.waveforms[1], samples[4000:12000, 1])
    assert batch.label_lengths.tolist() == [0, 0]


# --- workers that die or hang


@pytest.fixture
def faulty(monkeypatch, tmp_path):
    """Makes the reading of a file go wrong, in the workers that are started from now on."""
    monkeypatch.setattr(loading, "POLL", 0.2)
    original = loading.read_audio

    def set_up(name: str, fault, once: bool = False) -> None:
        def read(path, *rest):
            if Path(path).name == name and not (once and (tmp_path / "failed").exists()):
                (tmp_path / "failed").touch()
                fault()
            return original(path, *rest)

        monkeypatch.setattr(loading, "read_audio", read)

    return set_up


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(1000)


@pytest.mark.parametrize("fault, message", [(die, "died"), (hang, r"delivered no batch for 1 s")])
def test_lost_workers_are_named(make, corpus, faulty, fault, message):
    faulty("5.wav", fault)
    loader = make(corpus[0], workers=2, worker_timeout=1.0)
    with pytest.raises(TrainingError, match=rf"{message}.*reading {corpus[0].parent}/5\.wav \(.*line 6\)"):
        list(loader)


@pytest.mark.parametrize("fault", [die, hang])
@pytest.mark.parametrize("once", [True, False])
def test_lost_workers_are_passed_over(make, corpus, faulty, fault, once, capsys):
    """What was read when a worker was lost is tried once more; all else is met once, in the same order."""
    expected = list(make(corpus[0]))
    faulty("5.wav", fault, once)
    left_out = []
    options = {"worker_timeout": 1.0, "leave_out": lambda index, why: left_out.append((index, why))}
    loader = make(corpus[0], workers=2, **options)
    batches = list(loader)
    assert [index for index, _ in left_out] == ([] if once else [5])
    assert "5.wav" in capsys.readouterr().err
    met = [[k for k in batch.indices.tolist() if once or k != 5] for batch in expected]
    assert [batch.indices.tolist() for batch in batches] == met
    assert loader.state_dict()["position"] == len(expected)
    loader.sampler.set_epoch(1)
    assert sorted(int(k) for batch in loader for k in batch.indices) == [k for k in range(12) if once or k != 5]


def test_lost_workers_are_passed_over_in_a_list(make, corpus, faulty):
    """As the statistics of the features are measured."""
    faulty("5.wav", die)
    batches = [[(2 * k, 0), (2 * k + 1, 0)] for k in range(6)]
    left_out: list[int] = []
    loader = make(corpus[0], workers=2, batches=batches, leave_out=lambda index, why: left_out.append(index))
    for _ in range(2):
        met = [batch.indices.tolist() for batch in loader]
        assert met == [[0, 1], [2, 3], [4], [6, 7], [8, 9], [10, 11]] and left_out == [5]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_audio_is_passed_over(make, corpus, tmp_path, workers):
    (corpus[0].parent / "5.wav").write_text("no audio")
    leave_out = LeftOut(Manifests([str(corpus[0])]), tmp_path / "left_out.jsonl")
    loader = make(corpus[0], workers, leave_out=leave_out)
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        assert sorted(int(k) for batch in loader for k in batch.indices) == [k for k in range(12) if k != 5]
    [row] = map(json.loads, (tmp_path / "left_out.jsonl").open())
    assert row["audio_filepath"].endswith("5.wav") and "cannot be read as audio" in row["reason"]


def test_workers_end_with_what_read_them(make, corpus):
    """Also where it is held in a cycle, as by the traceback of an error."""
    like = make(corpus[0])
    loader = SpeechLoader(like.dataset, like.sampler, num_workers=1)
    before = set(multiprocessing.active_children())
    batches = iter(loader)
    next(batches)
    [worker] = set(multiprocessing.active_children()) - before
    cycle: list = [batches]
    cycle.append(cycle)
    del batches, cycle, loader
    gc.collect()
    worker.join(1.0)
    assert not worker.is_alive()


def test_workers_leave_signals_to_the_training(make, corpus, monkeypatch):
    """A batch system sends them to all processes of a job; to one that has just begun, too."""
    begin = loading._begin_worker

    def begin_late(worker: int) -> None:
        time.sleep(worker)
        begin(worker)

    monkeypatch.setattr(loading, "_begin_worker", begin_late)
    loader = make(corpus[0], workers=2)
    batches = iter(loader)
    seen = [next(batches)]
    for worker in loader._iterator._workers:
        for number in signals.STOPPING:
            os.kill(worker.pid, number)
    seen += batches
    assert sorted(int(k) for batch in seen for k in batch.indices) == list(range(12))
