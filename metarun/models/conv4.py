"""The four-block convolutional embedding of few-shot learning (Vinyals et al. 2016; Finn et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from metarun.errors import require
from metarun.models.norm import BatchNorm
from metarun.tasks.base import Spec
from metarun.types import Positive


class Block(nn.Module):
    """3x3 convolution, batch norm, ReLU, and halving by stride or by max pooling.

    Pooling comes before the ReLU: the two commute, and the ReLU then costs a quarter.
    """

    def __init__(self, inputs: int, width: int, pool: bool, scale: bool) -> None:
        super().__init__()
        # A bias before batch normalisation is cancelled by the mean: it would be a parameter without effect.
        self.conv = nn.Conv2d(inputs, width, 3, stride=1 if pool else 2, padding=1, bias=False)
        self.norm = BatchNorm(width, scale=scale)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return torch.relu(nn.functional.max_pool2d(x, 2) if self.pool else x)


class Conv4(nn.Module):
    """Conv-4: images -> features.

    ``width`` filters in each block, or a list of them, one a block (R2-D2: 96, 192, 384, 512). ``downsample`` is
    ``pool`` (Prototypical Networks) or ``stride`` (MAML on Omniglot); ``reduce`` turns the last map into a vector by
    flattening it or by its spatial mean; ``norm_scale`` gives batch norm a learned factor (MAML's networks have none).
    Images [N, C, H, W] or uint8 in 0..255 -> [N, features].
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    role: ClassVar[str] = "features"

    def __init__(
        self,
        spec: Spec,
        *,
        width: Positive | Sequence[Positive],
        depth: Positive,
        downsample: Literal["pool", "stride"],
        reduce: Literal["flatten", "mean"],
        norm_scale: bool,
    ) -> None:
        super().__init__()
        channels, height, image_width = spec.input_shape
        require(
            downsample == "stride" or min(height, image_width) >= 2**depth,
            f"model.depth={depth} with model.downsample=pool halves a {height}x{image_width} image below one pixel; "
            f"use at most depth={min(height, image_width).bit_length() - 1}, or downsample=stride",
        )
        widths = [width] * depth if isinstance(width, int) else list(width)
        require(len(widths) == depth, f"model.width={widths}: names {len(widths)} blocks, but model.depth={depth}")
        inputs = [channels, *widths[:-1]]
        blocks = [Block(n, m, downsample == "pool", norm_scale) for n, m in zip(inputs, widths, strict=True)]
        for block in blocks:
            nn.init.xavier_uniform_(block.conv.weight)
        self.blocks = nn.Sequential(*blocks)
        self.reduce = reduce
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(as_float(x))
        return x.mean((2, 3)) if self.reduce == "mean" else x.flatten(1)


def as_float(x: Tensor) -> Tensor:
    """Images stored as uint8 (ink 255) as floats in [0, 1]; others as they are."""
    return x.to(torch.get_default_dtype()) / 255 if x.dtype == torch.uint8 else x
