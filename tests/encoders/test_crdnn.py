import torch
from torch import nn
from torch.nn import functional as F

from asr.encoders import Crdnn

DIM = 10


def test_equals_the_layers_one_by_one_on_each_utterance():
    """In training without dropout: convolve, pool and run each utterance alone, pool their frames for batch norm."""
    torch.manual_seed(0)
    options = {"channels": (3, 4), "time_pooling": 3, "layers": 2, "width": 5, "dnn_layers": 2, "dnn_width": 6}
    encoder = Crdnn(DIM, dropout=0.0, **options).double().train()
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm1d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    lengths = torch.tensor([26, 7, 1])
    features = torch.randn(3, 26, DIM).double()
    found, frames = encoder(features, lengths)
    assert encoder.stride == 3 and frames.tolist() == [9, 3, 1] and found.shape[2] == encoder.dim == 6
    stack = nn.LSTM(8, 5, 2, batch_first=True, bidirectional=True).double()
    for k, layer in enumerate(encoder.layers):
        for key, value in layer.state_dict().items():
            stack.state_dict()[key.replace("_l0", f"_l{k}")].copy_(value)
    outputs = []
    for row, length in enumerate(lengths.tolist()):
        x = features[row, :length][None, None]  # (1, channels, T, frequencies)
        for block in encoder.subsampling.blocks:
            for convolution, norm in zip(block.convolutions, block.norms, strict=True):
                x = F.conv2d(x, convolution.weight, convolution.bias, padding=1)
                x = F.layer_norm(x.transpose(1, 2), norm.weight.shape, norm.weight, norm.bias).transpose(1, 2)
                x = torch.where(x > 0, x, 0.01 * x)
            pairs = x.shape[3] // 2
            x = torch.maximum(x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2])
        x = torch.stack([part.amax(2) for part in x.split(3, 2)], 2)
        outputs.append(stack(x.transpose(1, 2).flatten(2))[0][0])
    x = torch.cat(outputs)
    for linear, norm in zip(encoder.dense, encoder.dense_norms, strict=True):
        x = x @ linear.weight.T
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias
        x = torch.where(x > 0, x, 0.01 * x)
    real = torch.cat([row[:length] for row, length in zip(found, frames.tolist(), strict=True)])
    torch.testing.assert_close(real, x, atol=1e-9, rtol=0)


def test_dropout_of_the_blocks_takes_whole_channels():
    torch.manual_seed(0)
    blocks = Crdnn(DIM, channels=(16,), time_pooling=1, dropout=0.5).subsampling
    features, lengths = torch.randn(2, 30, DIM), torch.tensor([30, 30])
    expected, found = (blocks.train(mode)(features, lengths)[0].unflatten(2, (16, -1)) for mode in (False, True))
    ratio = (found / expected).movedim(2, 1).flatten(2)  # (B, channels, T · frequencies)
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))
    assert set(ratio.round(decimals=3).unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(ratio[0], ratio[1])


def test_locked_dropout_of_the_dense_layers_is_one_mask_for_all_frames():
    torch.manual_seed(0)
    crdnn = Crdnn(DIM, channels=(4,), layers=1, width=8, dnn_layers=1, dnn_width=64, dropout=0.5, dropout_kind="locked")
    hidden, _ = crdnn.train()(torch.randn(2, 40, DIM), torch.tensor([40, 40]))
    dropped = (hidden == 0).all(1)
    assert torch.equal(dropped, (hidden == 0).any(1)) and 0 < dropped.sum() < dropped.numel()
    assert not torch.equal(dropped[0], dropped[1])
