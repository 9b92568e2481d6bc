"""The memory layout of images and of their gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function


class ChannelsLast(Function):
    """The images themselves, [..., C, H, W], channels-last in memory, as are their gradients of any order.

    Nothing is copied that is already channels-last.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.movedim(-3, -1).contiguous().movedim(-1, -3)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return ChannelsLast.apply(g)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int | None]:
        (dim,) = in_dims
        return ChannelsLast.apply(x if dim is None else x.movedim(dim, 0)), None if dim is None else 0
