"""Every shipped encoder keeps the contract: lengths, `tap`, gradients, no effect of padding or of neighbours."""

from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import get_object

from asr.encoders import Conformer, Crdnn, Lstm, PyramidBlstm
from asr.errors import ConfigError
from asr.testing import check_encoder

DIM = 12
CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "encoder").glob("*.yaml"))
SMALL = {"layers": 2, "width": 8, "heads": 2, "ffn_dim": 6, "kernel": 5, "dnn_width": 8, "halvings": 1}


def small(path):
    """A shipped encoder with its own options, all but the sizes."""
    options = yaml.safe_load(path.read_text("utf-8"))
    kind = get_object(options.pop("_target_"))
    options |= {key: size for key, size in SMALL.items() if key in options}
    if "channels" in options:
        options["channels"] = [2] * len(options["channels"]) if isinstance(options["channels"], list) else 2
    return lambda input_dim, **others: kind(input_dim, **{**options, **others})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped(path):
    check_encoder(small(path), DIM)


@pytest.mark.parametrize(
    "make",
    [
        lambda input_dim: PyramidBlstm(input_dim, 3, 6, projection=4, stacking=3, halvings=2, norm="batch"),
        lambda input_dim: PyramidBlstm(input_dim, 2, 6, halvings=0, dropout_kind="locked", weight_dropout=0.2),
        lambda input_dim: Lstm(input_dim, 2, 6, 3, lookahead=0, subsampling="stack", stride=3, norm="batch"),
        lambda input_dim: Lstm(input_dim, 3, 6, lookahead=7, residual="highway", dropout_kind="locked", channels=2),
        lambda input_dim: Crdnn(input_dim, [2], 3, 2, 6, 4, dnn_width=7, norm="batch", residual="add"),
        lambda input_dim: Crdnn(input_dim, [2, 2], 1, 1, 6, bidirectional=False, dnn_layers=1, dropout_kind="locked"),
        lambda input_dim: Conformer(input_dim, 2, 8, 2, 6, 5, "stack", 3, norm="layer"),
        lambda input_dim: Conformer(input_dim, 1, 8, 2, 6, 5, channels=2, norm="none"),
    ],
)
def test_other_options(make):
    check_encoder(make, DIM)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_trains_on_single_frames(path):
    """Also where batch norm has but one frame, whose variance is not known."""
    encoder = small(path)(DIM).train()
    hidden, lengths = encoder(torch.randn(1, 1, DIM), torch.tensor([1]))
    hidden.sum().backward()
    assert lengths.tolist() == [1]
    assert all(buffer.isfinite().all() for buffer in encoder.buffers())
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (PyramidBlstm, {"halvings": 3}, r"encoder\.halvings=3: must be 0 or more, and below layers=3"),
        (PyramidBlstm, {"stacking": 0}, r"encoder\.stride=0"),
        (Lstm, {"lookahead": -1}, r"encoder\.lookahead=-1: must be 0 or more"),
        (Crdnn, {"time_pooling": 0}, r"encoder\.time_pooling=0"),
        (Crdnn, {"channels": [2] * 4}, r"encoder\.channels=\[2, 2, 2, 2\]: 12 features cannot be halved so often"),
        (Crdnn, {"dnn_layers": 0}, r"encoder\.dnn_layers=0"),
        (Conformer, {"heads": 5}, "heads=5 divide width=144"),
        (Conformer, {"kernel": 30}, r"encoder\.kernel=30: must be odd"),
    ],
)
def test_config_errors(kind, options, message):
    with pytest.raises(ConfigError, match=message):
        kind(DIM, **options)
