"""A featurizer with weights of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from asr.featurizers import LogMel
from asr.training.run import set_up


class Shifted(LogMel):
    """Energies are shifted by a weight."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, waveforms, lengths):
        features, lengths = super().forward(waveforms, lengths)
        return features + self.shift, lengths


@pytest.mark.parametrize("objective", ["ctc", "cr_ctc"])
def test_its_weights_learn(configure, objective):
    torch.manual_seed(0)
    _, module, data = set_up(
        configure("run", "augment=[speed,specaugment]", f"objective={objective}", "encoder.dropout=0")
    )
    module.model.featurizer = Shifted()
    batch = next(iter(data.train_dataloader()))

    def loss() -> torch.Tensor:
        return module.losses(batch)[0].sum()

    loss().backward()
    ends = []
    for shift in (0.005, -0.005):
        module.model.featurizer.shift.data.fill_(shift)
        ends.append(loss().item())
    assert module.model.featurizer.shift.grad.item() == pytest.approx((ends[0] - ends[1]) / 0.01, rel=0.05)
