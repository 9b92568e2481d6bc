"""Wide residual networks (Zagoruyko & Komodakis 2016)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from metarun.errors import require
from metarun.models.mlp import as_float
from metarun.models.norm import BatchNorm
from metarun.tasks.episode import Spec
from metarun.types import Fraction, Positive


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Make a convolution without bias, with He initialisation by fan-out (He et al. 2015)."""
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class Block(nn.Module):
    """Pre-activation residual block: batch norm, ReLU and convolution, twice, with dropout in between.

    If width or size change, a 1x1 convolution of the normalised input replaces the identity.
    """

    def __init__(self, inputs: int, width: int, stride: int, drop: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = BatchNorm(inputs), convolution(inputs, width, 3, stride)
        self.norm2, self.conv2 = BatchNorm(width), convolution(width, width, 3)
        self.beside = None if inputs == width and stride == 1 else convolution(inputs, width, 1, stride)
        self.dropout = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(x))
        x = x if self.beside is None else self.beside(y)
        return x + self.conv2(self.dropout(torch.relu(self.norm2(self.conv1(y)))))


class WRN(nn.Module):
    """Wide residual network WRN-``depth``-``width`` (arXiv:1605.07146, section 2 and table 1).

    Maps images [N, C, H, W], floats or uint8 in 0..255, to features [N, 64 * width]. A convolution of 16 filters is
    followed by three groups of (depth - 4) / 6 blocks with 16, 32 and 64 times ``width`` filters, of which the last two
    halve the image, and the spatial mean. Few-shot papers use WRN-28-10 (Rusu et al. 2019, Mangla et al. 2020).

    Args:
        spec: Shapes of the task.
        depth: Number of layers, 6 n + 4.
        width: Widening factor.
        drop: Dropout rate inside blocks.

    Raises:
        UserError: ``depth`` or ``drop`` is not allowed.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    role: ClassVar[str] = "features"

    def __init__(self, spec: Spec, *, depth: Positive, width: Positive, drop: Fraction) -> None:
        super().__init__()
        require(
            depth >= 10 and (depth - 4) % 6 == 0,
            f"model.depth={depth}: must be 6 n + 4 (10, 16, 22, 28, ...) for three groups of n blocks",
        )
        require(drop < 1, "model.drop=1: must be less than 1")
        widths = [16, *(base * width for base in (16, 32, 64))]
        self.stem = convolution(spec.input_shape[0], widths[0], 3)
        self.blocks = nn.Sequential(*(
            Block(widths[group] if first else widths[group + 1], widths[group + 1], 2 if first and group else 1, drop)
            for group in range(3) for first in [True, *[False] * ((depth - 4) // 6 - 1)]
        ))  # fmt: skip
        self.norm = BatchNorm(widths[-1])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def maps(self, x: Tensor) -> Tensor:
        """Return the last feature map, [N, 64 * width, H, W], for heads that compare feature maps."""
        return torch.relu(self.norm(self.blocks(self.stem(as_float(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).mean((2, 3))
