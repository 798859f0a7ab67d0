import pytest
import torch

from asr.augment import Tempo
from asr.errors import ConfigError
from asr.testing import check_augment


@pytest.mark.parametrize("new", [51, 101, 161])
def test_frames_are_interpolated(new: int) -> None:
    features = torch.randn(1, 101, 8, generator=torch.Generator().manual_seed(0))
    tempo = 100 / (new - 1)
    stretched, lengths = Tempo(tempo, tempo)(features, torch.tensor([101]), torch.tensor([1]))
    expected = torch.nn.functional.interpolate(features.mT, new, mode="linear", align_corners=True).mT
    assert lengths.tolist() == [new]
    torch.testing.assert_close(stretched, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tempo", [0.7, 1.1])
def test_no_length_reads_past_its_end(tempo: float) -> None:
    lengths = torch.arange(1, 201)  # 12 frames at 1.1: rounding decides whether the last is reached
    features = torch.arange(1.0, 201.0).expand(200, -1)[..., None]
    features = features * (torch.arange(200) < lengths[:, None])[..., None]
    stretched, new = Tempo(tempo, tempo)(features, lengths, torch.arange(200))
    for row, length in enumerate(new.tolist()):
        torch.testing.assert_close(stretched[row, :length, 0], 1 + tempo * torch.arange(length), atol=1e-3, rtol=0)
        assert 1 + tempo * length > int(lengths[row]) - 1e-9 and not stretched[row, length:].any()


def test_tempos_are_drawn() -> None:
    lengths = torch.full((400,), 1001)
    features = torch.arange(1001.0)[None, :, None].expand(400, -1, 1)
    stretched, new = Tempo(0.8, 1.25, probability=0.75)(features, lengths, torch.arange(400))
    tempos = stretched[:, 1, 0]
    assert 0.8 <= tempos.min() < 0.82 and 1.23 < tempos.max() <= 1.25
    assert 70 < (tempos == 1).sum() < 130
    assert (new - 1000 / tempos).abs().max() <= 1.01
    assert lengths.eq(1001).all()


def test_contract() -> None:
    check_augment(Tempo(0.7, 1.4))
    assert Tempo(0.7, 1.4).max_speed == 1.4 and Tempo(0.7, 0.9).max_speed == 1.0


@pytest.mark.parametrize("options", [{"lowest": 0.4}, {"lowest": 1.2}, {"highest": 2.1}, {"probability": 1.1}])
def test_config_errors(options: dict) -> None:
    with pytest.raises(ConfigError, match=r"augment\.tempo"):
        Tempo(**options)
