"""ResNet-12, a larger embedding for few-shot learning (Oreshkin et al. 2018; Lee et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.errors import require
from metarun.models.mlp import as_float
from metarun.models.norm import BatchNorm
from metarun.tasks.episode import Spec
from metarun.types import Fraction, Positive

SLOPE = 0.1
"""Negative slope of the leaky ReLUs."""


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Make a convolution without bias, with He initialisation by fan-out (He et al. 2015)."""
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, a=SLOPE, mode="fan_out", nonlinearity="leaky_relu")
    return conv


class DropBlock(nn.Module):
    """Sets random squares of feature maps to zero during training (Ghiasi et al. 2018, arXiv:1810.12890, algorithm 1).

    The remaining values are divided by the share of values that remain in all maps together.

    Args:
        drop: Expected share of a feature map that is set to zero.
        block: Side of the squares in pixels. It is reduced to the size of maps that are smaller.
    """

    def __init__(self, drop: float, block: int) -> None:
        super().__init__()
        self.drop, self.block = drop, block

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop == 0:
            return x
        height, width = x.shape[-2:]
        size = min(self.block, height, width)
        places = (height - size + 1) * (width - size + 1)
        gamma = self.drop * height * width / (size * size * places)
        corners = torch.rand_like(x[..., : height - size + 1, : width - size + 1]) < gamma
        # A pixel is dropped if any square that covers it has its corner among ``corners``.
        around = F.pad(corners.to(x.dtype), [size - 1] * 4)
        kept = 1 - F.max_pool2d(around, size, stride=1)
        return x * kept / kept.mean().clamp(min=1e-6)


class Block(nn.Module):
    """Residual block of three 3x3 convolutions with a 1x1 shortcut, 2x2 max pooling and dropout."""

    def __init__(self, inputs: int, width: int, dropout: nn.Module) -> None:
        super().__init__()
        self.convs = nn.ModuleList([convolution(n, width, 3) for n in (inputs, width, width)])
        self.norms = nn.ModuleList([BatchNorm(width) for _ in range(3)])
        self.beside, self.beside_norm = convolution(inputs, width, 1), BatchNorm(width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            assert isinstance(norm, BatchNorm)
            y = norm.after(conv, y)
            if i < 2:
                y = F.leaky_relu(y, SLOPE)
        # Pooling and leaky ReLU commute. In this order the ReLU has a quarter of the work.
        return self.dropout(F.leaky_relu(F.max_pool2d(y + self.beside_norm(self.beside(x)), 2), SLOPE))


class ResNet12(nn.Module):
    """ResNet-12 as in MetaOptNet (Lee et al. 2019, arXiv:1904.03758, section 4.1).

    Maps images [N, C, H, W], floats or uint8 in 0..255, to features [N, features]. The first two blocks end with
    dropout, the others with DropBlock. The authors' code increases the rate of DropBlock over the first 40,000 batches.
    Here it is constant, so that a step depends only on its data.

    Args:
        spec: Shapes of the task.
        widths: Number of filters of each block (MetaOptNet: 64, 160, 320, 640; TADAM, arXiv:1805.10123: 64, 128, 256,
            512).
        drop: Rate of dropout and DropBlock.
        block: Side of DropBlock's squares in pixels.
        reduce: ``flatten`` the last feature map to a vector, as MetaOptNet does, or take its spatial ``mean``, as later
            papers do.

    Raises:
        UserError: The blocks would reduce the image below one pixel, or ``widths`` or ``drop`` is not allowed.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    role: ClassVar[str] = "features"

    def __init__(
        self,
        spec: Spec,
        *,
        widths: Sequence[Positive],
        drop: Fraction,
        block: Positive,
        reduce: Literal["flatten", "mean"],
    ) -> None:
        super().__init__()
        channels, height, image_width = spec.input_shape
        require(bool(widths), "model.widths=[]: give the filters of at least one block")
        require(
            min(height, image_width) >= 2 ** len(widths),
            f"model.widths={list(widths)}: {len(widths)} blocks halve a {height}x{image_width} image below one pixel; "
            f"use at most {min(height, image_width).bit_length() - 1}",
        )
        require(drop < 1, "model.drop=1: must be less than 1")
        inputs = [channels, *widths[:-1]]
        self.blocks = nn.Sequential(*(
            Block(n, width, nn.Dropout(drop) if i < 2 else DropBlock(drop, block))
            for i, (n, width) in enumerate(zip(inputs, widths, strict=True))
        ))  # fmt: skip
        self.reduce = reduce
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def maps(self, x: Tensor) -> Tensor:
        """Return the last feature map, [N, widths[-1], H, W], for heads that compare feature maps."""
        return self.blocks(as_float(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        return x.mean((2, 3)) if self.reduce == "mean" else x.flatten(1)
