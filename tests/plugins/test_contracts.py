"""`asr.testing`: our components and the example's pass, deliberately broken ones fail and are told why."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torchaudio
from torch import Tensor, nn

from asr import augment, decoders, encoders, featurizers, objectives, testing, text, tokenizers
from asr.model import AcousticModel


@pytest.mark.parametrize("make", [featurizers.LogMel, featurizers.Mfcc, featurizers.Spectrogram])
@pytest.mark.parametrize("sample_rate", [8000, 16000])
def test_our_featurizers(make, sample_rate: int) -> None:
    testing.check_featurizer(make(sample_rate=sample_rate))


@pytest.mark.parametrize("make", [encoders.Blstm, encoders.Gru])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": "stack", "stride": 3},
        {"subsampling": "stack", "stride": 1, "layer_norm": False, "dropout": 0.0},
        {"bidirectional": False, "stride": 2},
    ],
)
def test_our_encoders(make, options: dict) -> None:
    torch.manual_seed(0)
    testing.check_encoder(lambda input_dim: make(input_dim, layers=2, width=12, channels=4, **options), 20)


def test_our_encoder_with_projection() -> None:
    torch.manual_seed(0)
    testing.check_encoder(encoders.Blstm(20, layers=2, width=12, projection=6, channels=4), 20)


@pytest.mark.parametrize("normalization", ["global", "utterance"])
def test_the_model_with_nan_in_the_padding(normalization: str) -> None:
    featurizer = featurizers.LogMel(bands=20)
    encoder = encoders.Blstm(20, layers=1, width=12, channels=4)
    testing.check_model(AcousticModel(featurizer, encoder, 5, normalization))


def test_our_tokenizers_decoder_text_and_augmentations() -> None:
    for tokenizer in (tokenizers.Characters(), tokenizers.Words(), tokenizers.SentencePiece(vocab_size=24)):
        testing.check_tokenizer(tokenizer)
        testing.check_decoder(decoders.Greedy(tokenizer), tokenizer)
    testing.check_text(text.Normalizer(), ["Twenty-one o’clock, 'Go!'", "ŉ…", "Straße  İ"])
    testing.check_augment(augment.SpecAugment())
    testing.check_augment(augment.SpeedPerturbation([0.8, 1.0, 1.25]))


@pytest.mark.parametrize("options", [{}, {"intermediate_layers": [1, 2], "intermediate_weight": 0.5}])
@pytest.mark.parametrize("make", [objectives.Ctc, objectives.CrCtc])
def test_our_objectives(make, options: dict) -> None:
    testing.check_objective(partial(make, **options))


def test_the_example(example: Path) -> None:
    from asr_example.decoder import EagerGreedy
    from asr_example.encoder import Tdnn
    from asr_example.featurizer import LogMelDelta
    from asr_example.text import Unaccented
    from asr_example.tokenizer import English

    torch.manual_seed(0)
    testing.check_encoder(lambda input_dim: Tdnn(input_dim, width=12, dilations=(1, 3)), 20)
    testing.check_featurizer(LogMelDelta())
    testing.check_text(Unaccented(), ["Été à Łódź!", "don't"])
    testing.check_tokenizer(English())
    testing.check_decoder(EagerGreedy(English()), English())


class Encoder(nn.Module):
    """A sound encoder for the broken ones to break: one layer, frame by frame."""

    def __init__(self, input_dim: int):
        super().__init__()
        self.dim, self.stride = 8, 1
        self.layer = nn.Linear(input_dim, 8)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return lengths

    def forward(self, features: Tensor, lengths: Tensor, tap=None) -> tuple[Tensor, Tensor]:
        x = self.run(features)
        return (x if tap is None else tap(0, x, lengths)), lengths

    def run(self, x: Tensor) -> Tensor:
        return self.layer(x)


class UnpackedBlstm(Encoder):
    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.layer = nn.LSTM(input_dim, 4, bidirectional=True, batch_first=True)  # type: ignore[assignment]

    def run(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class BatchNormOverPadding(Encoder):
    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.norm = nn.BatchNorm1d(8)

    def run(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x).transpose(1, 2)).transpose(1, 2)


class UnmaskedConvolution(Encoder):
    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.convolution = nn.Conv1d(8, 8, 3, padding=1)

    def run(self, x: Tensor) -> Tensor:
        return self.convolution(self.layer(x).transpose(1, 2)).transpose(1, 2)


class UnmaskedBatchStatistics(Encoder):
    def run(self, x: Tensor) -> Tensor:
        return self.layer(x / x.std())


class Deaf(Encoder):
    def forward(self, features: Tensor, lengths: Tensor, tap=None) -> tuple[Tensor, Tensor]:
        if tap is not None:
            tap(0, self.run(features), lengths)
        return self.run(features), lengths


class Untapped(Encoder):
    def forward(self, features: Tensor, lengths: Tensor, tap=None) -> tuple[Tensor, Tensor]:
        return self.run(features), lengths


class WrongLengths(Encoder):
    def output_lengths(self, lengths: Tensor) -> Tensor:
        return lengths + 1


class Ratios(Encoder):
    def output_lengths(self, lengths: Tensor) -> Tensor:
        return lengths * 1.0


class WrongStride(Encoder):
    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.stride = 2


class Unused(Encoder):
    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.forgotten = nn.Linear(3, 3)


class Rushed(Encoder):
    """Its stream takes the mean of each piece away, not of the utterance."""

    def forward(self, features: Tensor, lengths: Tensor, tap=None) -> tuple[Tensor, Tensor]:
        mask = torch.arange(features.shape[1])[None, :, None] < lengths[:, None, None]
        features = features.masked_fill(~mask, 0)
        return super().forward(features - features.sum(1, keepdim=True) / lengths[:, None, None], lengths, tap)

    def start(self) -> None:
        pass

    def step(self, features: Tensor, state: None) -> Tensor:
        return self.run(features - features.mean(1, keepdim=True))

    def finish(self, state: None) -> Tensor:
        return torch.zeros(1, 0, self.dim)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Rushed, "a stream in pieces of 1 gives other numbers than the whole"),
        (UnpackedBlstm, "padding or neighbours leak"),
        (UnmaskedConvolution, "padding or neighbours leak"),
        (UnmaskedBatchStatistics, "padding or neighbours leak"),
        (BatchNormOverPadding, "in training, outputs or running statistics differ"),
        (Deaf, "goes on without what tap returns"),
        (Untapped, "never calls tap"),
        (WrongLengths, "output_lengths says 2"),
        (Ratios, "int64"),
        (WrongStride, "stride=2"),
        (Unused, "no gradient reaches the parameter 'forgotten.weight'"),
    ],
)
def test_broken_encoders_fail(make, message: str) -> None:
    torch.manual_seed(0)
    testing.check_encoder(Encoder, 20)
    with pytest.raises(AssertionError, match=message):
        testing.check_encoder(make, 20)


class Centred(featurizers.LogMel):
    """torchaudio's default: the last frames read past the end."""

    def __init__(self, **options):
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(n_fft=512, hop_length=160, n_mels=80)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return lengths // 160 + 1

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        padded = nn.functional.pad(waveforms, (0, 512))
        return (self.mel(padded) + 1e-6).log().transpose(1, 2), self.output_lengths(lengths)


class LoudestOfTheBatch(featurizers.LogMel):
    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        features, lengths = super().forward(waveforms.nan_to_num(), lengths)
        return features.clamp(min=float(features.max()) - 5), lengths


@pytest.mark.parametrize("make", [Centred, LoudestOfTheBatch])
def test_leaky_featurizers_fail(make) -> None:
    with pytest.raises(AssertionError, match="leak"):
        testing.check_featurizer(make())


class ReadsPadding(decoders.Greedy):
    def __call__(self, emissions):
        whole = np.full(len(emissions.lengths), emissions.log_probs.shape[1])
        return super().__call__(replace(emissions, log_probs=np.nan_to_num(emissions.log_probs), lengths=whole))


class WorstFirst(decoders.Greedy):
    def __call__(self, emissions):
        return [[replace(best, score=best.score - 1), best] for (best,) in super().__call__(emissions)]


class InPlace(decoders.Greedy):
    def __call__(self, emissions):
        emissions.log_probs[..., 0] -= 1
        return super().__call__(emissions)


@pytest.mark.parametrize(
    ("make", "message"),
    [(ReadsPadding, "labels in|past|seconds|audio"), (WorstFirst, "best first"), (InPlace, "alters the emissions")],
)
def test_broken_decoders_fail(make, message: str) -> None:
    letters = tokenizers.Characters(labels=" abc")
    with pytest.raises(AssertionError, match=message):
        testing.check_decoder(make(letters), letters)


class BlankLast(tokenizers.Characters):
    def _encode(self, text: str) -> list[int]:
        return [i - 1 for i in super()._encode(text)]


class Noise(nn.Module):
    domain: ClassVar = "waveform"

    def forward(self, waveforms: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        return waveforms + torch.randn_like(waveforms), lengths


class Halved(nn.Module):
    domain: ClassVar = "features"

    def forward(self, features: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        return features[:, ::2], (lengths + 1) // 2


class MeanOfTheBatch(objectives.Ctc):
    def __call__(self, model, view, batch):
        losses, parts = super().__call__(model, view, batch)
        return losses.mean().expand(len(batch)), parts


class Scalar(objectives.Ctc):
    def __call__(self, model, view, batch):
        losses, parts = super().__call__(model, view, batch)
        return losses.sum(), parts


class PaddedConsistency(objectives.CrCtc):
    def encode(self, *arguments):
        log_probs, lengths, parts = super().encode(*arguments)
        return log_probs, torch.full_like(lengths, log_probs.shape[1]), parts


class Detached(objectives.Ctc):
    def __call__(self, model, view, batch):
        return super().__call__(model, lambda number: (0 * view(number)[0], view(number)[1]), batch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (MeanOfTheBatch, "alone is"),
        (PaddedConsistency, "alone is"),
        (Scalar, r"'loss' must be \(B,\)"),
        (Detached, "no gradient reaches the model's 'encoder"),
    ],
)
def test_broken_objectives_fail(make, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        testing.check_objective(make)


def test_other_broken_components_fail() -> None:
    with pytest.raises(AssertionError, match=r"ids are 1…"):
        testing.check_tokenizer(BlankLast())
    with pytest.raises(AssertionError, match="not idempotent"):
        testing.check_text(lambda text: text.replace("ll", "l").replace("ee", "eee"))
    with pytest.raises(AssertionError, match="with the same seed"):
        testing.check_augment(Noise())
    with pytest.raises(AssertionError, match="max_speed"):
        testing.check_augment(Halved())
