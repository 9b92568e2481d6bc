"""The four-block convolutional embedding of few-shot learning (Vinyals et al. 2016; Finn et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from metarun.errors import require
from metarun.models.norm import BatchNorm
from metarun.tasks.episode import Spec
from metarun.types import Count, Positive


class Block(nn.Module):
    """3x3 convolution, batch norm, ReLU, and halving by stride or by max pooling, or none.

    Pooling comes before the ReLU: the two commute, and the ReLU then costs a quarter.
    """

    def __init__(self, inputs: int, width: int, halve: Literal["pool", "stride"] | None, scale: bool) -> None:
        super().__init__()
        # A bias before batch normalisation is cancelled by the mean: it would be a parameter without effect.
        self.conv = nn.Conv2d(inputs, width, 3, stride=2 if halve == "stride" else 1, padding=1, bias=False)
        self.norm = BatchNorm(width, scale=scale)
        self.pool = halve == "pool"

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm.after(self.conv, x)
        return torch.relu(nn.functional.max_pool2d(x, 2) if self.pool else x)


class Conv4(nn.Module):
    """Conv-4: images -> features.

    ``width`` filters in each block, or a list of them, one a block (R2-D2: 96, 192, 384, 512). ``downsample`` is
    ``pool`` (Prototypical Networks) or ``stride`` (MAML on Omniglot), in the first ``halvings`` blocks (null: in
    all); ``reduce`` turns the last map into a vector by flattening it or by its spatial mean; ``norm_scale`` gives
    batch norm a learned factor (MAML's networks have none). Images [N, C, H, W] or uint8 in 0..255 -> [N, features];
    :meth:`maps` is the last map.
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
        halvings: Count | None,
        reduce: Literal["flatten", "mean"],
        norm_scale: bool,
    ) -> None:
        super().__init__()
        channels, height, image_width = spec.input_shape
        halved = depth if halvings is None else min(depth, halvings)
        require(
            downsample == "stride" or min(height, image_width) >= 2**halved,
            f"model.depth={depth} with model.downsample=pool halves a {height}x{image_width} image below one pixel; "
            f"use at most depth={min(height, image_width).bit_length() - 1}, fewer halvings, or downsample=stride",
        )
        widths = [width] * depth if isinstance(width, int) else list(width)
        require(len(widths) == depth, f"model.width={widths}: names {len(widths)} blocks, but model.depth={depth}")
        sizes = zip([channels, *widths[:-1]], widths, strict=True)
        blocks = [Block(n, m, downsample if i < halved else None, norm_scale) for i, (n, m) in enumerate(sizes)]
        for block in blocks:
            nn.init.xavier_uniform_(block.conv.weight)
        self.blocks = nn.Sequential(*blocks)
        self.reduce = reduce
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def maps(self, x: Tensor) -> Tensor:
        """[N, width, height, width of the last map]: what heads that compare maps read."""
        return self.blocks(as_float(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        return x.mean((2, 3)) if self.reduce == "mean" else x.flatten(1)


def as_float(x: Tensor) -> Tensor:
    """Images stored as uint8 (ink 255) as floats in [0, 1]; others as they are."""
    return x.to(torch.get_default_dtype()) / 255 if x.dtype == torch.uint8 else x
