import resource
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from asr.data.audio import read_audio
from asr.data.index import ManifestIndex
from asr.data.module import Fit, SpeechData
from asr.data.shards import parse_member
from asr.errors import AudioError, ConfigError

FIT = Fit(
    encode=lambda text: [" ab".index(character) for character in text],
    unknown=lambda text: [],
    frames=lambda seconds: np.floor(seconds * 100).astype(int),
    sample_rate=16000,
)


def data(manifest, group=1, **options) -> SpeechData:
    made = SpeechData(str(manifest), validation_speakers=0, **{"workers": 0, "batch_seconds": 2.0, **options})
    made.prepare(FIT, group)
    return made


def same(one, two) -> bool:
    names = ("waveforms", "lengths", "labels", "label_lengths", "indices")
    return len(one) == len(two) and all(
        torch.equal(getattr(a, name), getattr(b, name)) for a, b in zip(one, two, strict=True) for name in names
    )


def test_batches_equal_those_of_files(both):
    one, two = (data(manifest).train_dataloader() for manifest in both)
    for epoch in (0, 1):
        for loader in (one, two):
            loader.sampler.set_epoch(epoch)
        assert same(list(one), list(two))


def test_a_stream_of_two_ranks_and_workers_is_resumed_to_the_utterance(both):
    """No utterance is repeated or lost, wherever each rank was stopped with batches read ahead."""
    made = data(both[1], group=2, workers=2, buffer=10)

    def loader(rank):
        return made.loader(made.train, made._sampler(rank, 2), persistent=False)

    expected = [list(loader(rank)) for rank in range(2)]
    seen = [int(k) for batches in expected for batch in batches for k in batch.indices]
    assert sorted(seen) == list(range(60)) and len(expected[0]) == len(expected[1])
    for rank in range(2):
        stopped = loader(rank)
        batches = iter(stopped)
        head = [next(batches) for _ in range(3)]
        state = stopped.state_dict()
        batches.close()
        resumed = loader(rank)
        resumed.load_state_dict(state)
        resumed.sampler.set_epoch(0)
        assert same([*head, *resumed], expected[rank])


def test_a_stream_reads_its_shards_ahead(both, monkeypatch):
    through = []
    monkeypatch.setattr("asr.data.stream._read_through", through.append)
    made = data(both[1], buffer=10)
    loader = made.train_dataloader()
    list(loader)
    shards = {parse_member(u.audio_filepath).shard for u in ManifestIndex(both[1])}
    deadline = time.monotonic() + 10
    while len(through) < len(shards) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(through) == shards and len(through) == len(shards) > 5


def test_damaged_cut_and_missing_shards_are_named(both):
    utterances = list(ManifestIndex(both[1]))
    last = parse_member(utterances[-1].audio_filepath)
    first = utterances[0]
    member = parse_member(first.audio_filepath)
    with open(member.shard, "r+b") as shard:
        shard.seek(member.start + member.size // 2)
        byte = shard.read(1)
        shard.seek(-1, 1)
        shard.write(bytes([byte[0] ^ 1]))
    with pytest.raises(AudioError, match=r"000000\.tar#512\+\d+:.* damaged.*CRC-32 differs"):
        read_audio(first.audio_filepath, 16000)
    with pytest.raises(AudioError, match=r"damaged.* It stands in .*train\.jsonl, line 1\.$"):
        list(data(both[1]).train_dataloader())
    with open(last.shard, "r+b") as shard:
        shard.truncate(last.start + 100)
    with pytest.raises(AudioError, match=rf"cut short: 100 of the {last.size} bytes"):
        read_audio(utterances[-1].audio_filepath, 16000)
    (folder := Path(last.shard).with_name("folder.tar")).mkdir()
    with pytest.raises(AudioError, match=r"folder\.tar: cannot be read \(Is a directory\)"):
        read_audio(f"{folder}#512+100:00000000", 16000)
    with pytest.raises(AudioError, match=r"nowhere\.tar: no such shard\. .* data\.failures=skip"):
        read_audio("nowhere.tar#512+100:00000000", 16000)


def test_memory_stays_flat(both):
    """10,000 utterances read take no more memory than a thousand, but for what the allocator keeps."""
    utterances, sizes = list(ManifestIndex(both[1])), []
    for k in range(10_000):
        u = utterances[k % 60]
        read_audio(u.audio_filepath, 16000, u.offset, u.duration)
        if k in (1000, 9999):
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
    assert sizes[1] - sizes[0] < 4 << 20


@pytest.mark.parametrize("options, message", [({"curriculum": 1}, "data.curriculum"), ({"buffer": 0}, "data.buffer=0")])
def test_buffer_options(both, options, message):
    with pytest.raises(ConfigError, match=message):
        data(both[1], **{"buffer": 5, **options})
