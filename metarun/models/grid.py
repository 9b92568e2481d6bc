"""Convolutional networks for signals on a grid of one or two dimensions, and the way of sets of points onto it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FAR = -40.0
"""Smallest exponent of a weight, of which nothing is seen. The exponential of less takes ten times as long where it
underflows, as do products of the results."""


def same_size(ends: int, between: Sequence[int], kernel: int, dimensions: int) -> nn.Sequential:
    """Return a CNN of ReLUs and convolutions that keep the grid's size, with ``ends`` channels before and after."""
    convolution = nn.Conv1d if dimensions == 1 else nn.Conv2d
    layers = [(convolution(a, b, kernel, padding=kernel // 2), nn.ReLU()) for a, b in pairwise([ends, *between, ends])]
    return nn.Sequential(*(part for layer in layers for part in layer))


class UNet(nn.Module):
    """Halves the resolution several times, restores it, and concatenates what has the same resolution.

    The network of Ronneberger et al. (2015, arXiv:1505.04597) as in Gordon et al. (2020, arXiv:1910.13556, "XL"): one
    strided convolution per halving, one transposed convolution per doubling, ReLUs, and channels that double after
    every second halving.

    Shapes: [T, C, G] or [T, C, G, G] to the same with 2 C channels. G is a multiple of 2 to the power of ``halvings``.

    Args:
        channels: Number of input channels, C.
        halvings: Number of halvings.
        kernel: Size of the convolutions, odd.
        dimensions: 1 or 2.
    """

    def __init__(self, channels: int, halvings: int, kernel: int, dimensions: int) -> None:
        super().__init__()
        down, up = ((nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d))[dimensions - 1]
        widths = [channels * 2 ** (k // 2) for k in range(halvings + 1)]
        half = kernel // 2
        self.down = nn.ModuleList(down(a, b, kernel, stride=2, padding=half) for a, b in pairwise(widths))
        self.up = nn.ModuleList()
        before = widths[-1]
        for width in reversed(widths[:-1]):
            self.up.append(up(before, width, kernel, stride=2, padding=half, output_padding=1))
            before = 2 * width

    def forward(self, x: Tensor) -> Tensor:
        passed = [x]
        for layer in self.down:
            passed.append(F.relu(layer(passed[-1])))
        h = passed.pop()
        for layer in self.up:
            h = torch.cat([passed.pop(), F.relu(layer(h))], 1)
        return h


class SetConvolution(nn.Module):
    """Weights by Gaussians with a learned length scale for each channel, then a linear layer over channels.

    Args:
        inputs: Channels that are weighted.
        outputs: Channels of the linear layer.
        length: Initial length scale.
    """

    def __init__(self, inputs: int, outputs: int, length: float) -> None:
        super().__init__()
        self.log_length = nn.Parameter(torch.full((inputs,), log(length)))
        self.linear = nn.Linear(inputs, outputs)

    def weights(self, x: Tensor, grid: Tensor) -> list[Tensor]:
        """Return exp(-(x_d - grid)^2 / 2 l_c^2), at least e^-40, for each coordinate d of ``x`` [T, N, d].

        Shapes: [T, C, N, G] each.
        """
        scale = -0.5 * torch.exp(-2 * self.log_length)[:, None, None]
        far = [(x[:, None, :, d, None] - grid).square() * scale for d in range(x.shape[-1])]
        return [exponent.clamp(min=FAR).exp() for exponent in far]

    def forward(self, values: Tensor, dim: int = -1) -> Tensor:
        """Apply the linear layer over dimension ``dim`` of ``values``."""
        return self.linear(values.movedim(dim, -1)).movedim(-1, dim)
