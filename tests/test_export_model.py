"""An exported model says what torch says, at any length and batch size, or is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from asr.encoders import Blstm, Gru
from asr.engines import OnnxEngine, TorchEngine
from asr.errors import ConfigError
from asr.export import export_model
from asr.featurizers import LogMel, Mfcc, Spectrogram
from asr.model import AcousticModel
from asr.plugins import instantiate

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[1]
ENCODERS = {
    "blstm": Blstm,
    "projection": lambda dim, **options: Blstm(dim, projection=8, **options),
    "lstm-stack": lambda dim, **options: Blstm(dim, bidirectional=False, subsampling="stack", stride=3, **options),
    "gru": Gru,
    "residual": lambda dim, **options: Blstm(dim, residual="highway", dropout_kind="locked", **options),
}


def make(featurizer=LogMel, encoder="blstm", normalization="global", labels=12, conditioning=()) -> AcousticModel:
    torch.manual_seed(0)
    stage = featurizer()
    layers = ENCODERS[encoder](stage.dim, layers=2, width=16, channels=2)
    model = AcousticModel(stage, layers, labels, normalization, conditioning)
    with torch.no_grad():
        model.head.weight.mul_(4)
    return model.eval()


def speech(*seconds: float) -> list[np.ndarray]:
    """Noise of different loudness, as float32 at 16 kHz."""
    random = np.random.default_rng(0)
    return [
        10.0 ** -(k % 3) * random.standard_normal(max(1, round(16000 * s)), np.float32) for k, s in enumerate(seconds)
    ]


def equal(model: AcousticModel, engine: OnnxEngine, waveforms: list[np.ndarray], tolerance: float = 1e-4) -> None:
    expected, found = TorchEngine(model, torch.device("cpu"))(waveforms).numpy(), engine(waveforms)
    assert found.frame_seconds == expected.frame_seconds
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    assert found.log_probs.dtype == np.float32
    for ours, theirs, length in zip(found.log_probs, expected.log_probs, found.lengths, strict=True):
        np.testing.assert_allclose(ours[:length], theirs[:length], atol=tolerance)


@pytest.mark.parametrize(
    ("featurizer", "encoder", "normalization"),
    [
        (LogMel, "blstm", "global"),
        (LogMel, "projection", "utterance"),
        (Mfcc, "lstm-stack", "utterance"),
        (Spectrogram, "gru", "global"),
        (LogMel, "residual", "global"),
    ],
)
def test_equals_torch_at_any_length_and_batch(featurizer, encoder, normalization):
    model = make(featurizer, encoder, normalization, conditioning=[1])
    engine = OnnxEngine(export_model(model), threads=1)
    for seconds in ((1.0,), (5.03,), (0.5, 2.117, 0.03), (3e-5,), (0.032, 0.0001), (2.0,) * 7):
        equal(model, engine, speech(*seconds))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "encoder").glob("*.yaml")))
def test_every_shipped_encoder(name):
    config = yaml.safe_load((ROOT / "conf" / "encoder" / f"{name}.yaml").read_text()) | {"layers": 3, "width": 16}
    torch.manual_seed(0)
    featurizer = LogMel()
    model = AcousticModel(featurizer, instantiate(config, "encoder", input_dim=featurizer.dim), 12).eval()
    equal(model, OnnxEngine(export_model(model), threads=1), speech(0.5, 2.117, 0.03))


def test_padding_and_neighbours_change_nothing():
    exported = export_model(make())
    session = ort.InferenceSession(exported.content, providers=["CPUExecutionProvider"])
    short, long = speech(0.4, 3.0)
    padded = np.full((2, len(long) + 5000), np.nan, np.float32)
    padded[0, : len(short)], padded[1, : len(long)] = short, 1000 * long
    lengths = np.array([len(short), len(long)])
    log_probs, frames = session.run(None, {"waveforms": padded, "lengths": lengths})
    [alone], [count] = session.run(None, {"waveforms": short[None], "lengths": lengths[:1]})
    assert frames[0] == count == len(alone)
    np.testing.assert_allclose(log_probs[0, :count], alone, atol=1e-5)


def test_eight_bits_are_close_and_small():
    model = make()
    model.encoder = Blstm(80, layers=2, width=128, channels=2).eval()
    model.head = nn.Linear(256, 12)
    whole, small = export_model(model), export_model(model, int8=True)
    assert len(small.content) < 0.5 * len(whole.content) and small.int8 and not whole.int8
    kinds = {node.op_type for node in onnx.load_model_from_string(small.content).graph.node}
    assert {"DynamicQuantizeLSTM", "MatMulInteger"} <= kinds and not {"LSTM", "ConvInteger"} & kinds
    waveforms = speech(1.0, 0.3)
    expected, found = (np.exp(OnnxEngine(onnx_model, 1)(waveforms).log_probs[0]) for onnx_model in (whole, small))
    assert 0 < np.abs(found - expected).max() < 0.05


class Frozen(nn.Module):
    """Its positions are counted in Python, so that a trace keeps those of its example."""

    dim, stride = 8, 1

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(80, 8)

    def forward(self, features, lengths, tap=None):
        return self.layer(features) * torch.tensor([[[k / 10] for k in range(int(features.shape[1]))]]), lengths

    def output_lengths(self, lengths):
        return lengths


class Complex(Frozen):
    """Computes what ONNX has no operator for."""

    def forward(self, features, lengths, tap=None):
        return torch.fft.fft(self.layer(features)).real, lengths


@pytest.mark.parametrize("encoder", [Frozen, Complex])
def test_what_cannot_be_exported_is_refused_by_name(encoder):
    featurizer = LogMel()
    with pytest.raises(ConfigError, match=f"{encoder.__name__} on LogMel cannot be exported: "):
        export_model(AcousticModel(featurizer, encoder(), 5))


def test_layers_without_an_eight_bit_kernel_are_refused():
    with pytest.raises(ConfigError, match=r"Gru on LogMel cannot be exported: .*8-bit kernels"):
        export_model(make(encoder="gru"), int8=True)
