"""Maximum pooling whose derivatives of any order keep images channels-last, for all tasks at once.

The derivatives of pooling only move values between a window and the pixel that is its maximum:

    MaxPool(x)          the maxima and their positions
    Scatter(g, where)   adds each value to the pixel of its maximum: MaxPool's derivative and the adjoint of Gather
    Gather(u, where)    takes each value from the pixel of its maximum: the adjoint of Scatter
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from metarun.kernels.conv import channels_last, task_dim_first


class Window(NamedTuple):
    """Sizes of a pooling operation. Each pair is (vertical, horizontal)."""

    size: tuple[int, int]
    """Height and width of the input images."""
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


def max_pool2d(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Pool images ``x`` [B, C, H, W] to [B, C, H', W'], as ``F.max_pool2d``."""
    return MaxPool.apply(x, Window((x.shape[2], x.shape[3]), kernel, stride, padding))[0]


class MaxPool(Function):
    """Computes the maxima and their positions in the input plane (row * W + column)."""

    @staticmethod
    def forward(x: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        return torch.ops.aten.max_pool2d_with_indices(x, window.kernel, window.stride, window.padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.window = inputs[1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, unused: Any) -> tuple[Tensor, None]:
        return Scatter.apply(g, ctx.saved_tensors[0], ctx.window), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, window: Window
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        x = task_dim_first(x, in_dims[0], info.batch_size)
        y, where = MaxPool.apply(channels_last(x.flatten(0, 1)), window)
        return (y.unflatten(0, x.shape[:2]), where.unflatten(0, x.shape[:2])), (0, 0)


class Scatter(Function):
    """Adds the values ``g`` [B, C, H', W'] to zero images [B, C, H, W] at the positions ``where`` [B, C, H', W']."""

    @staticmethod
    def forward(g: Tensor, where: Tensor, window: Window) -> Tensor:
        shape = (*g.shape[:2], *window.size)
        like = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=torch.channels_last)
        return torch.ops.aten.max_pool2d_with_indices_backward(
            channels_last(g), like, window.kernel, window.stride, window.padding, [1, 1], False, channels_last(where)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.window = inputs[2]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None, None]:
        return Gather.apply(u, ctx.saved_tensors[0], ctx.window), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], g: Tensor, where: Tensor, window: Window
    ) -> tuple[Tensor, int]:
        g, where = (task_dim_first(t, d, info.batch_size) for t, d in zip((g, where), in_dims, strict=False))
        return Scatter.apply(g.flatten(0, 1), where.flatten(0, 1), window).unflatten(0, g.shape[:2]), 0


class Gather(Function):
    """Takes the values of ``u`` [B, C, H, W] at the positions ``where`` [B, C, H', W']."""

    @staticmethod
    def forward(u: Tensor, where: Tensor, window: Window) -> Tensor:
        # [B, H W, C] is a view of channels-last images.
        pixels, positions = (t.permute(0, 2, 3, 1).flatten(1, 2) for t in (u, where))
        return pixels.gather(1, positions).view(len(u), *where.shape[2:], u.shape[1]).permute(0, 3, 1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.window = inputs[2]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return Scatter.apply(g, ctx.saved_tensors[0], ctx.window), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], u: Tensor, where: Tensor, window: Window
    ) -> tuple[Tensor, int]:
        u, where = (task_dim_first(t, d, info.batch_size) for t, d in zip((u, where), in_dims, strict=False))
        return Gather.apply(u.flatten(0, 1), where.flatten(0, 1), window).unflatten(0, u.shape[:2]), 0
