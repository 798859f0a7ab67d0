"""A time-delay neural network: dilated convolutions over time, each ahead of which the padding is masked."""

import torch
from torch import Tensor, nn


class Tdnn(nn.Module):
    """Dilated convolutions with ReLU and LayerNorm (Waibel et al. 1989; Peddinti et al., Interspeech 2015).

    Args:
        input_dim: features of a frame.
        width: channels of every layer.
        dilations: frames between the taps of a layer's kernel of three.
        stride: input frames per output frame, by the first layer.

    Shapes: features (B, T, input_dim), lengths (B,) → hidden (B, ⌈T / stride⌉, width), lengths (B,).
    """

    def __init__(self, input_dim: int, width: int = 256, dilations: tuple[int, ...] = (1, 2, 4, 8), stride: int = 4):
        super().__init__()
        self.dim, self.stride = width, stride
        first = nn.Conv1d(input_dim, width, 2 * stride + 1, stride, padding=stride)
        others = [nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation) for dilation in dilations]
        self.layers = nn.ModuleList([first, *others])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.layers)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return (lengths + self.stride - 1) // self.stride

    def forward(self, features: Tensor, lengths: Tensor, tap=None) -> tuple[Tensor, Tensor]:
        x = features
        for k, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            real = torch.arange(x.shape[1], device=x.device) < lengths.to(x.device)[:, None]
            x = x.masked_fill(~real[..., None], 0)
            x = norm(layer(x.transpose(1, 2)).relu().transpose(1, 2))
            if k == 0:
                lengths = self.output_lengths(lengths)
            if tap is not None:
                x = tap(k, x, lengths)
        return x, lengths
