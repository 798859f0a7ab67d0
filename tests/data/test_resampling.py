from __future__ import annotations

import numpy as np
import pytest
import torch
import torchaudio

from asr.data.resampling import Resampler


@pytest.mark.parametrize("rates", [(48000, 16000), (44100, 16000), (8000, 16000), (11025, 8000), (22050, 48000)])
@pytest.mark.parametrize("samples", [1, 7, 1000, 300_001])
def test_equals_torchaudio(rates, samples):
    waveform = np.random.default_rng(samples).standard_normal(samples, np.float32)
    # in float32 its filters are off by up to 5e-5
    expected = torchaudio.transforms.Resample(*rates, dtype=torch.float64)(torch.from_numpy(waveform).double()).numpy()
    found = Resampler(*rates)(waveform)
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_a_tone_stays_what_it_is():
    rate, new_rate, hertz = 44100, 16000, 440
    found = Resampler(rate, new_rate)(np.sin(2 * np.pi * hertz * np.arange(rate) / rate).astype(np.float32))
    expected = np.sin(2 * np.pi * hertz * np.arange(new_rate) / new_rate)
    np.testing.assert_allclose(found[100:-100], expected[100:-100], atol=1e-3)
