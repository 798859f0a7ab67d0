import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from asr.types import Batch, Emissions, Utterance


def test_types_load_without_torch():
    code = "import sys, asr, asr.types, asr.errors; print(*sorted({'torch', 'lightning', 'numba'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_utterance_gives_fields_and_extra_keys():
    utterance = Utterance("/a.wav", "hi", 1.5, speaker="s", extra={"age": 30, "accent": None})
    assert [utterance.get(key) for key in ("text", "speaker", "age")] == ["hi", "s", 30]
    assert utterance.get("accent") is None and utterance.get("height") is None
    assert pickle.loads(pickle.dumps(utterance)) == utterance
    with pytest.raises(AttributeError):
        utterance.text = "ho"


def batch() -> Batch:
    lengths = torch.tensor([3, 2])
    return Batch(torch.rand(2, 3), lengths, torch.ones(2, 1, dtype=torch.int64), lengths, torch.tensor([7, 9]), 4)


def test_lengths_stay_on_the_cpu():
    moved = batch().to("meta")
    assert len(moved) == 2 and moved.step_utterances == 4
    assert {moved.waveforms.device.type, moved.labels.device.type} == {"meta"}
    assert {t.device.type for t in (moved.lengths, moved.label_lengths, moved.indices)} == {"cpu"}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pin_memory():
    pinned = batch().pin_memory()
    assert pinned.waveforms.is_pinned() and pinned.labels.is_pinned()


def test_emissions_as_numpy():
    log_probs = torch.rand(1, 2, 3)
    for emissions in (Emissions(log_probs, torch.tensor([2]), 0.04), Emissions(log_probs.numpy(), np.array([2]), 0.04)):
        arrays = emissions.numpy()
        assert isinstance(arrays.log_probs, np.ndarray) and isinstance(arrays.lengths, np.ndarray)
        np.testing.assert_array_equal(arrays.log_probs, log_probs)
        assert arrays.frame_seconds == 0.04
