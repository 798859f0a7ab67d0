"""Each objective against its formula, written out utterance by utterance without padding."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn.functional import ctc_loss, kl_div

from asr.encoders import Blstm
from asr.errors import ConfigError
from asr.featurizers import LogMel
from asr.model import AcousticModel
from asr.objectives import CrCtc, Ctc
from asr.objectives.ctc import fits
from asr.types import Batch

FRAMES = (60, 24, 41)
LABELS = ((3, 1, 1, 4), (2,), (5, 5, 3))


@pytest.fixture
def model() -> AcousticModel:
    torch.manual_seed(0)
    return AcousticModel(LogMel(bands=8), Blstm(8, layers=3, width=6, channels=2, dropout=0.0), labels=6)


def batch(*rows: int) -> Batch:
    labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(LABELS[row]) for row in rows], batch_first=True)
    counts = torch.tensor([len(LABELS[row]) for row in rows])
    return Batch(torch.zeros(len(rows), 1), torch.ones_like(counts), labels, counts, torch.tensor(rows))


def features(row: int, number: int) -> Tensor:
    return torch.randn(1, FRAMES[row], 8, generator=torch.Generator().manual_seed(10 * number + row))


def views(*rows: int):
    def view(number: int) -> tuple[Tensor, Tensor]:
        pieces = [features(row, number)[0] for row in rows]
        return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True), torch.tensor([FRAMES[row] for row in rows])

    return view


def emissions(model: AcousticModel, row: int, number: int) -> Tensor:
    """(T, V) of an utterance alone."""
    return model.encode(features(row, number), torch.tensor([FRAMES[row]]))[0][0]


def ctc(log_probs: Tensor, row: int) -> Tensor:
    labels = torch.tensor([LABELS[row]])
    return ctc_loss(log_probs[:, None], labels, [len(log_probs)], [labels.shape[1]], reduction="sum")


def gradients(model: AcousticModel, losses: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(losses.sum(), [*model.parameters()]))


def test_ctc(model):
    losses, _ = Ctc(model)(model, views(0, 1, 2), batch(0, 1, 2))
    expected = torch.stack([ctc(emissions(model, row, 0), row) for row in range(3)])
    torch.testing.assert_close(losses, expected)


def inner_emissions(model: AcousticModel, row: int, number: int, layer: int) -> Tensor:
    """(T, V) of an utterance alone, by a copy of the model that ends with this layer."""
    model = copy.copy(model)
    model._modules = {**model._modules, "encoder": copy.copy(model.encoder)}
    model.encoder._modules = {**model.encoder._modules, "layers": model.encoder.layers[:layer]}
    return emissions(model, row, number)


def test_intermediate_ctc(model):
    losses, parts = Ctc(model, [1, 2], 0.4)(model, views(0, 1, 2), batch(0, 1, 2))
    expected = []
    for row in range(3):
        last, one, two = (ctc(inner_emissions(model, row, 0, layer), row) for layer in (3, 1, 2))
        torch.testing.assert_close(parts["ctc"][row], last)
        expected.append(0.6 * last + 0.4 * (one + two) / 2)
    torch.testing.assert_close(losses, torch.stack(expected))
    for ours, theirs in zip(gradients(model, losses), gradients(model, torch.stack(expected)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_cr_ctc_with_intermediate_layers(model):
    losses, parts = CrCtc(model, 0.3, [2], 0.4)(model, views(0, 1), batch(0, 1))
    for row in range(2):
        inner = sum(ctc(inner_emissions(model, row, number, 2), row) for number in range(2)) / 2
        torch.testing.assert_close(parts["intermediate_ctc"][row], inner)
    torch.testing.assert_close(
        losses, 0.6 * parts["ctc"] + 0.4 * parts["intermediate_ctc"] + 0.3 * parts["consistency"]
    )


def test_intermediate_predictions_come_before_self_conditioning():
    torch.manual_seed(0)
    encoder = Blstm(8, layers=2, width=6, channels=2, dropout=0.0)
    model = AcousticModel(LogMel(bands=8), encoder, labels=6, self_conditioning=[1])
    _, parts = Ctc(model, [1])(model, views(0), batch(0))
    plain = AcousticModel(LogMel(bands=8), encoder, labels=6)
    plain.head = model.head
    torch.testing.assert_close(parts["intermediate_ctc"][0], ctc(inner_emissions(plain, 0, 0, 1), 0))


@pytest.mark.parametrize("layers", [[3], [0], [1, 4], 2, "2"])
def test_layers_that_are_none(model, layers):
    with pytest.raises(ConfigError, match=r"objective.intermediate_layers=.*from \[1, 2\]"):
        CrCtc(model, intermediate_layers=layers)


@pytest.mark.parametrize("option", [{"weight": -1.0}, {"intermediate_weight": 1.0}, {"start_step": -1}])
def test_numbers_out_of_range(model, option):
    with pytest.raises(ConfigError, match=f"objective.{next(iter(option))}"):
        CrCtc(model, **option)


def test_cr_ctc(model):
    losses, parts = CrCtc(model, 0.3)(model, views(0, 1, 2), batch(0, 1, 2))
    expected = []
    for row in range(3):
        one, other = emissions(model, row, 0), emissions(model, row, 1)
        likelihood = (ctc(one, row) + ctc(other, row)) / 2
        to_one = kl_div(one, other.detach().exp(), reduction="sum")
        to_other = kl_div(other, one.detach().exp(), reduction="sum")
        torch.testing.assert_close(parts["ctc"][row], likelihood)
        torch.testing.assert_close(parts["consistency"][row], (to_one + to_other) / 2)
        expected.append(likelihood + 0.3 * (to_one + to_other) / 2)
    torch.testing.assert_close(losses, torch.stack(expected))
    assert parts["consistency"].min() > 0
    for ours, theirs in zip(gradients(model, losses), gradients(model, torch.stack(expected)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_target_of_the_consistency_gets_no_gradient(model):
    """With it, the gradient of a symmetric divergence would be another one."""
    _, parts = CrCtc(model)(model, views(0), batch(0))
    one, other = emissions(model, 0, 0), emissions(model, 0, 1)
    with_it = (
        kl_div(one, other, reduction="sum", log_target=True) + kl_div(other, one, reduction="sum", log_target=True)
    ) / 2
    torch.testing.assert_close(parts["consistency"].sum(), with_it)
    found, other_way = gradients(model, parts["consistency"]), gradients(model, with_it)
    assert max(float((a - b).abs().max()) for a, b in zip(found, other_way, strict=True)) > 1e-3


def test_views_that_are_alike_have_no_divergence(model):
    losses, parts = CrCtc(model)(model, lambda number: views(0, 1)(0), batch(0, 1))
    torch.testing.assert_close(parts["consistency"], torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(losses, Ctc(model)(model, views(0, 1), batch(0, 1))[0])


def test_the_views_have_dropout_of_their_own(model):
    model.encoder.dropout.p = 0.5
    _, parts = CrCtc(model)(model, lambda number: views(0)(0), batch(0))
    assert parts["consistency"] > 1e-3


def test_views_of_other_lengths_are_refused(model):
    def view(number: int) -> tuple[Tensor, Tensor]:
        return features(0, 0), torch.tensor([FRAMES[0] - number])

    with pytest.raises(ConfigError, match="changes lengths"):
        CrCtc(model)(model, view, batch(0))


def test_impossible_labels_cost_nothing(model):
    def view(number: int) -> tuple[Tensor, Tensor]:
        return features(0, number)[:, :4], torch.tensor([4])  # one frame of emissions

    losses, _ = Ctc(model)(model, view, batch(0))
    assert losses.item() == 0
    losses, parts = CrCtc(model)(model, view, batch(0))
    assert parts["ctc"].item() == 0 and losses.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(model, losses))


def test_which_labels_fit_the_frames():
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(1, 3, (200, 6), generator=random)
    label_lengths = torch.randint(1, 7, (200,), generator=random)
    lengths, log_probs = torch.randint(1, 10, (200,), generator=random), torch.randn(9, 200, 3).log_softmax(-1)
    losses = ctc_loss(log_probs, labels, lengths, label_lengths, reduction="none")
    assert torch.equal(fits(lengths, labels, label_lengths), losses.isfinite())
    assert 0 < losses.isfinite().sum() < 200
    none = torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    assert fits(torch.tensor([3, 4]), *none).all()  # a batch of utterances with unknown characters only
