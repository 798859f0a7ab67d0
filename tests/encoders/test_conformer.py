"""Against torchaudio's Conformer, which is right for a batch without padding."""

import pytest
import torch
import torchaudio

from asr.encoders import Conformer

DIM = 8
LENGTHS = torch.tensor([30, 7, 1, 22])


def pair(**options):
    """Ours behind a linear layer that does nothing, and torchaudio's with the same weights."""
    torch.manual_seed(0)
    ours = Conformer(DIM, 2, DIM, 2, 12, 5, "stack", 1, dropout=0.0, **options).double()
    theirs = torchaudio.models.Conformer(DIM, 2, 12, 2, 5).double()
    torch.nn.init.eye_(ours.linear.weight)
    torch.nn.init.zeros_(ours.linear.bias)
    for key, value in theirs.state_dict().items():
        if "sequential.3" in key and value.is_floating_point():
            value.uniform_(0.5, 2)
    ours.layers.load_state_dict(theirs.conformer_layers.state_dict())
    return ours, theirs


def batch():
    return torch.randn(4, 30, DIM, generator=torch.Generator().manual_seed(1)).double()


def test_equals_torchaudio_on_utterances_alone():
    ours, theirs = (model.eval() for model in pair())
    features = batch()
    found, lengths = ours(features, LENGTHS)
    assert torch.equal(lengths, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        expected, _ = theirs(features[row : row + 1, :length], LENGTHS[row : row + 1])
        torch.testing.assert_close(found[row, :length], expected[0], atol=1e-10, rtol=0)


def test_trains_as_torchaudio_on_a_batch_without_padding():
    ours, theirs = (model.train() for model in pair())
    features, lengths = batch(), torch.tensor([30] * 4)
    found, expected = ours(features, lengths)[0], theirs(features, lengths)[0]
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    buffers = [[*model.buffers()] for model in (ours, theirs)]
    assert len(buffers[0]) == 6
    torch.testing.assert_close(*buffers)
    weights = torch.randn_like(found)
    pairs = (found, ours.layers), (expected, theirs)
    gradients = [torch.autograd.grad((y * weights).sum(), [*layers.parameters()]) for y, layers in pairs]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=0)


def test_batch_norm_counts_the_real_frames():
    """Padded, or cut into the same frames by hand: the running statistics are equal."""
    ours, _ = pair()
    ours.train()
    layer = ours.layers[0].conv_module.sequential
    seen = []
    layer[2].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    features = batch()
    ours(features, LENGTHS)
    frames = torch.cat([row[:, :length].T for row, length in zip(seen[0], LENGTHS.tolist(), strict=True)])
    expected = torch.nn.BatchNorm1d(DIM).double()
    expected(frames)
    before = 0.9 * pair()[0].layers[0].conv_module.sequential[3].running_mean
    torch.testing.assert_close(layer[3].running_mean - before, expected.running_mean)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_other_norms_do_not_look_at_other_utterances(norm):
    torch.manual_seed(0)
    encoder = Conformer(DIM, 1, 8, 2, 6, 5, "stack", 1, norm=norm, dropout=0.0).train()
    features = batch().float()
    found, _ = encoder(features, LENGTHS)
    alone, _ = encoder(features[1:2, :7], LENGTHS[1:2])
    torch.testing.assert_close(found[1, :7], alone[0], atol=1e-5, rtol=0)
