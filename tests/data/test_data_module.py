import json

import numpy as np
import pytest

from asr.data.manifest import read_manifest
from asr.data.module import Fit, SpeechData
from asr.data.sampler import batches_by_length
from asr.data.speakers import held_out
from asr.errors import AudioError, ConfigError, DataError
from asr.types import Utterance


def utterances(*speakers):
    return [Utterance(f"/{k}.wav", id=str(k), speaker=speaker) for k, speaker in enumerate(speakers)]


def speakers_of(chosen, mask):
    return {chosen[k].speaker for k in np.flatnonzero(mask)}


def encode(text: str) -> list[int]:
    if not set(text) <= set("ab"):
        raise DataError(f"unknown character in {text!r}")
    return [" ab".index(character) for character in text]


FIT = Fit(
    encode=encode,
    unknown=lambda text: [c for c in dict.fromkeys(text) if c not in "ab"],
    frames=lambda seconds: np.floor(seconds * 25).astype(int),
    sample_rate=16000,
)


def make(path, **options) -> SpeechData:
    return SpeechData(str(path), **{"workers": 0, "validation_speakers": 0, **options})


@pytest.mark.parametrize("share", [0.5, 0.25, 0.2, 0.1])
def test_folds_cover_all_speakers_once(share):
    chosen = utterances(*(f"s{k % 20}" for k in range(130)))
    folds = [held_out(chosen, share, fold, seed=3) for fold in range(round(1 / share))]
    np.testing.assert_array_equal(np.sum(folds, 0), np.ones(130))
    for fold in folds:
        assert not speakers_of(chosen, fold) & speakers_of(chosen, ~fold)
        assert len(speakers_of(chosen, fold)) == 20 * share


@pytest.mark.parametrize("count", [2, 3, 5, 9, 11])
def test_folds_of_few_speakers(count):
    """Where there are fewer speakers than folds, each fold is one speaker, and the others do not exist."""
    chosen = utterances(*(f"s{k}" for k in range(count)))
    folds = [held_out(chosen, 0.1, fold) for fold in range(min(count, 10))]
    np.testing.assert_array_equal(np.sum(folds, 0), np.ones(count))
    assert all(fold.any() and not fold.all() for fold in folds)
    with pytest.raises(ConfigError, match=r"data\.validation_fold=10: .* it is 0 to "):
        held_out(chosen, 0.1, 10)


def test_something_is_left_to_train_on():
    held = held_out(utterances("a", "b"), 0.9)
    assert held.sum() == 1


def test_held_out_is_seeded():
    chosen = utterances(*(f"s{k}" for k in range(40)))
    masks = [held_out(chosen, 0.25, seed=seed).tobytes() for seed in (0, 0, 1, 2)]
    assert masks[0] == masks[1] and len(set(masks)) == 3
    again = held_out(chosen[::-1], 0.25)[::-1]  # the order of the manifest makes no difference
    assert again.tobytes() == masks[0]


def test_utterances_without_speaker_are_speakers_of_their_own():
    assert held_out(utterances(*[None] * 20), 0.25).sum() == 5
    mixed = utterances(*["a"] * 5, *[None] * 5)
    for fold in range(4):
        assert held_out(mixed, 0.25, fold)[:5].sum() in (0, 5)


def test_one_speaker_cannot_be_held_out():
    with pytest.raises(DataError, match=r"names only one.*data\.validation=FILE.*data\.validation_speakers=0"):
        held_out(utterances("a", "a", "a"), 0.1)


def test_held_out_speakers_of_a_manifest(corpus):
    data = make(corpus[0], validation_speakers=0.33)
    data.prepare(FIT, 1)
    assert sorted([*data.train_indices, *data.validation_indices]) == list(range(12))
    assert {k % 3 for k in data.validation_indices}.isdisjoint({k % 3 for k in data.train_indices})
    trained = sorted(int(k) for batch in data.train_dataloader() for k in batch.indices)
    validated = sorted(int(k) for batch in data.val_dataloader() for k in batch.indices)
    assert trained == data.train_indices.tolist() and validated == data.validation_indices.tolist()
    assert sorted(data.texts()) == sorted("ab" * (1 + k // 4) for k in trained)


def test_no_validation(corpus):
    data = make(corpus[0])
    data.prepare(FIT, 1)
    assert data.val_dataloader() == [] and data.validation is None and len(data.train_indices) == 12


def test_drops_are_counted_by_reason(tmp_path, manifest):
    def row(name, text, duration):
        return {"audio_filepath": f"{name}.wav", "text": text, "duration": duration}

    path = manifest(
        tmp_path / "m.jsonl",
        row("good", "abab", 1.0),
        row("long", "ab", 31.0),
        row("brief", "a", 0.05),
        row("blank", "  ", 2.0),
        row("none", None, 3.0),
        row("cramped", "abab" * 7, 1.0),  # 28 labels, 25 frames
        row("repeats", "a" * 13, 1.0),  # 13 labels and 12 blanks between: just fits
        row("repeated", "a" * 14, 1.1),  # 14 and 13 in 27 frames: fits
        row("doubled", "a" * 14, 1.0),
        row("greek", "aβ", 4.0),
    )
    data = make(path, unknown="drop")
    data.prepare(FIT, 1)
    assert data.train_indices.tolist() == [0, 6, 7]
    reasons = {r["id"]: r["reason"] for r in data.dropped.rows()}
    assert reasons == {
        "long": "duration outside bounds",
        "brief": "duration outside bounds",
        "blank": "without transcript",
        "none": "without transcript",
        "cramped": "too short for CTC",
        "doubled": "too short for CTC",
        "greek": "unknown characters",
    }
    assert "2 too short for CTC (0.00 h)" in data.dropped.summary()
    data.write_reports(tmp_path)
    written = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text("utf-8").splitlines()]
    assert {r["id"]: r["reason"] for r in written} == reasons
    details = {r["id"]: r["detail"] for r in written}
    assert details["doubled"] == "25 frames for 27 needed by the transcript" and details["greek"] == "β"
    assert not (tmp_path / "validation.jsonl").exists()


def test_bounds_hold_as_they_are_written(tmp_path, manifest):
    path = manifest(tmp_path / "m.jsonl", {"audio_filepath": "a.wav", "text": "ab", "duration": 0.7})
    data = make(path, min_seconds=0.7, max_seconds=0.7)
    data.prepare(FIT, 1)
    assert len(data.train_indices) == 1


def test_unknown_character_is_an_error(tmp_path, manifest):
    path = manifest(tmp_path / "m.jsonl", {"audio_filepath": "x.wav", "text": "aβ", "duration": 1.0})
    with pytest.raises(DataError, match=r"m\.jsonl, line 1: no label for 'β'.*data\.unknown=drop"):
        make(path).prepare(FIT, 1)


def test_nothing_left(tmp_path, manifest):
    path = manifest(tmp_path / "m.jsonl", {"audio_filepath": "x.wav", "text": "a", "duration": 99.0})
    with pytest.raises(DataError, match=r"No utterance is left to train on: 1 duration outside bounds \(0.03 h\)"):
        make(path).prepare(FIT, 1)


def test_unknown_characters_of_the_validation_set(corpus, tmp_path, manifest):
    """They are counted; such an utterance is scored like all, but has no loss."""
    row = {"audio_filepath": "0.wav", "duration": 0.2, "text": "aβ"}
    validation = str(manifest(tmp_path / "v.jsonl", row, row | {"text": "ab", "id": "b"}))
    data = make(corpus[0], validation=validation)
    data.prepare(FIT, 1)
    assert data.validation_unknown == 1
    lengths = {int(k): int(n) for b in data.val_dataloader() for k, n in zip(b.indices, b.label_lengths, strict=True)}
    assert lengths == {0: 0, 1: 2}


def test_missing_durations_are_read_from_the_audio(tmp_path, noise, manifest):
    noise(tmp_path / "a.wav", 1.5)
    noise(tmp_path / "b.wav", 0.5, rate=8000)
    audio = {"text": "ab", "audio_filepath": "a.wav"}
    path = manifest(tmp_path / "m.jsonl", audio, audio | {"offset": 1.0}, audio | {"audio_filepath": "b.wav"})
    data = make(path)
    data.prepare(FIT, 1)
    np.testing.assert_allclose(data.train_seconds, [1.5, 0.5, 0.5])
    (tmp_path / "b.wav").unlink()
    with pytest.raises(AudioError, match=r"b\.wav: no such audio"):
        make(path).prepare(FIT, 1)


def test_steps_are_known_before_training(corpus):
    data = make(corpus[0], batch_seconds=1.5)
    data.prepare(FIT, 3)
    loader = data.train_dataloader()
    assert len(loader) == len(list(loader)) == 3 * data.steps_per_epoch()


def test_weights(corpus, tmp_path):
    """Of the first manifest every utterance twice, of the second one half of them."""
    other = tmp_path / "other.jsonl"
    other.write_text(corpus[0].read_text())
    data = SpeechData([str(corpus[0]), str(other)], weights=[2, 0.5], validation_speakers=0, workers=0, batch_seconds=2)
    data.prepare(FIT, 1)
    loader = data.train_dataloader()
    assert len(loader) == data.steps_per_epoch()
    halves = set()
    for epoch in range(6):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader)
        met = [int(k) for batch in batches for k in batch.indices]
        assert sorted(k for k in met if k % 24 < 12) == [*range(12), *range(24, 36)]
        half = frozenset(k for k in met if k % 24 >= 12)
        assert len(half) == 6
        halves.add(half)
        for batch in batches:  # a copy has a number of its own, but the same audio and labels
            for k, waveform, length in zip(batch.indices, batch.waveforms, batch.lengths, strict=True):
                np.testing.assert_allclose(waveform[:length], corpus[1][int(k) % 12], atol=1e-6)
    assert len(halves) > 1
    assert [(path.name, weight, len(found)) for path, weight, found in data.train_parts()] == [
        ("train.jsonl", 2, 12),
        ("other.jsonl", 0.5, 12),
    ]


def test_one_weight(corpus):
    data = make(corpus[0], weights=0.25)
    data.prepare(FIT, 1)
    assert sum(len(batch) for batch in data.train_dataloader()) == 3
    with pytest.raises(ConfigError, match=r"data\.weights: 0.01 of the 12 utterances of .*train\.jsonl is none"):
        make(corpus[0], weights=0.01).prepare(FIT, 1)


def test_validation_report_names_the_same_audio(corpus, tmp_path):
    data = make(corpus[0], validation_speakers=0.33)
    data.prepare(FIT, 1)
    (tmp_path / "run").mkdir()
    data.write_reports(tmp_path / "run")
    assert not (tmp_path / "run" / "dropped.jsonl").exists()
    written = list(read_manifest(tmp_path / "run" / "validation.jsonl"))
    assert written == [data.train[int(k)] for k in data.validation_indices]


def test_batches_by_length():
    random = np.random.default_rng(0)
    seconds, numbers = random.uniform(0.5, 12, 200), random.permutation(1000)[:200]
    batches = batches_by_length(numbers, seconds, 30)
    assert sorted(k for batch in batches for k in batch) == sorted(numbers)
    length = dict(zip(numbers.tolist(), seconds, strict=True))
    ordered = [length[k] for batch in batches for k in batch]
    assert ordered == sorted(ordered, reverse=True)
    assert all(len(batch) * length[batch[0]] <= 30 for batch in batches)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unknown": "skip"}, r"data\.unknown=skip: must be 'error' or 'drop'"),
        ({"validation_speakers": 1}, r"data\.validation_speakers=1"),
        ({"train": None}, r"data\.train: no training manifest"),
        ({"train": []}, r"data\.train: no training manifest"),
        ({"weights": [1, 2]}, r"data\.weights: 2 weights for 1 manifests"),
        ({"weights": [0]}, r"data\.weights: 0 must be a number above 0"),
        ({"weights": ["a"]}, r"data\.weights: 'a' must be a number above 0"),
        ({"curriculum": -1}, r"data\.curriculum=-1"),
        ({"batch_seconds": 0.0}, r"data\.batch_seconds=0.0: must be above 0"),
        ({"validation_batch_seconds": -1}, r"data\.validation_batch_seconds=-1: must be above 0"),
        ({"seed": -1}, r"data\.seed=-1: must be 0 or more"),
        ({"workers": -1}, r"data\.workers=-1: must be 0 or more"),
        ({"validation_speakers": 0.33, "validation_fold": 3}, r"data\.validation_fold=3: .* it is 0 to 2"),
    ],
)
def test_config_errors(corpus, options, message):
    with pytest.raises(ConfigError, match=message):
        SpeechData(**{"train": str(corpus[0]), "workers": 0, **options})
