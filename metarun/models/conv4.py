"""Conv-4, the standard convolutional embedding of few-shot learning (Vinyals et al. 2016; Finn et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from metarun.errors import require
from metarun.models.mlp import as_float
from metarun.models.norm import BatchNorm
from metarun.tasks.episode import Spec
from metarun.types import Count, Positive


class Block(nn.Module):
    """3x3 convolution, batch norm and ReLU, with stride 2, 2x2 max pooling or no downsampling.

    Pooling comes before the ReLU. The two commute, and the ReLU then has a quarter of the work.
    """

    def __init__(self, inputs: int, width: int, halve: Literal["pool", "stride"] | None, scale: bool) -> None:
        super().__init__()
        # Batch normalisation would cancel a bias.
        self.conv = nn.Conv2d(inputs, width, 3, stride=2 if halve == "stride" else 1, padding=1, bias=False)
        self.norm = BatchNorm(width, scale=scale)
        self.pool = halve == "pool"

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm.after(self.conv, x)
        return torch.relu(nn.functional.max_pool2d(x, 2) if self.pool else x)


class Conv4(nn.Module):
    """Conv-4 embedding of images [N, C, H, W], floats or uint8 in 0..255, to features [N, features].

    Args:
        spec: Shapes of the task.
        width: Number of filters of all blocks, or a list with one number per block (R2-D2: 96, 192, 384, 512).
        depth: Number of blocks.
        downsample: ``pool`` (Prototypical Networks) or ``stride`` (MAML on Omniglot).
        halvings: Number of blocks from the first one that downsample; ``None`` for all.
        reduce: ``flatten`` the last feature map to a vector, or take its spatial ``mean``.
        norm_scale: If true, batch norm has a learned scale. MAML's networks have none.

    Raises:
        UserError: Pooling would reduce the image below one pixel, or ``width`` does not have ``depth`` entries.
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
        require(len(widths) == depth, f"model.width={widths}: has {len(widths)} entries, but model.depth={depth}")
        sizes = zip([channels, *widths[:-1]], widths, strict=True)
        blocks = [Block(n, m, downsample if i < halved else None, norm_scale) for i, (n, m) in enumerate(sizes)]
        for block in blocks:
            nn.init.xavier_uniform_(block.conv.weight)
        self.blocks = nn.Sequential(*blocks)
        self.reduce = reduce
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def maps(self, x: Tensor) -> Tensor:
        """Return the last feature map, [N, filters, height, width], for heads that compare feature maps."""
        return self.blocks(as_float(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        return x.mean((2, 3)) if self.reduce == "mean" else x.flatten(1)
