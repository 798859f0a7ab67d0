import torch
from torch import nn

from asr.encoders import PyramidBlstm

DIM, WIDTH = 5, 4


def test_layers_read_pairs_of_frames():
    """Each utterance alone, by the equations of Listen, Attend and Spell: [h(2t), h(2t + 1)] go into the next layer."""
    torch.manual_seed(0)
    encoder = PyramidBlstm(DIM, layers=4, width=WIDTH, stacking=2, halvings=2, dropout=0.0, norm="none").double()
    lengths = torch.tensor([27, 16, 1])
    features = torch.randn(3, 27, DIM).double()
    seen = []
    found, frames = encoder(features, lengths, lambda k, hidden, lengths: (seen.append(lengths.tolist()), hidden)[1])
    assert encoder.stride == 8 and frames.tolist() == encoder.output_lengths(lengths).tolist() == [4, 2, 1]
    assert seen == [[14, 8, 1], [7, 4, 1], [4, 2, 1], [4, 2, 1]]
    sizes = [DIM * 2, 4 * WIDTH, 4 * WIDTH, 2 * WIDTH]
    for row, length in enumerate(lengths.tolist()):
        x = list(features[row, :length])
        for k, size in enumerate(sizes):
            if k < 3:
                x += [torch.zeros_like(x[0])] * (len(x) % 2)
                x = [torch.cat([x[t], x[t + 1]]) for t in range(0, len(x), 2)]
            layer = nn.LSTM(size, WIDTH, batch_first=True, bidirectional=True).double()
            layer.load_state_dict(encoder.layers[k].state_dict())
            x = list(layer(torch.stack(x)[None])[0][0])
        torch.testing.assert_close(found[row, : frames[row]], torch.stack(x))
