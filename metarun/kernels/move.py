"""Parameters moved by each task's own change, whose gradient is summed over tasks in the order of memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from metarun.kernels.norm import tasks_in_front


def move(parameter: Tensor, change: Tensor) -> Tensor:
    """``parameter + change``, both of one shape."""
    return Move.apply(parameter, change)


class Move(Function):
    """The sum of two tensors of equal rank, of which either may be shared by all tasks."""

    @staticmethod
    def forward(parameter: Tensor, change: Tensor) -> Tensor:
        return parameter + change

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.shapes = [t.shape for t in inputs]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        return tuple(summed(g, shape) for shape in ctx.shapes)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], parameter: Tensor, change: Tensor) -> tuple[Tensor, int]:
        both = (t[None] if dim is None else t for t, dim in zip((parameter, change), in_dims, strict=True))
        return Move.apply(*tasks_in_front(list(both), [dim or 0 for dim in in_dims])), 0


def summed(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``x`` summed to ``shape``, of the same rank, read from the beginning of its memory to the end.

    In any other order, as torch's own, sums over tasks take ten times as long.
    """
    dims = [d for d in range(x.dim()) if shape[d] < x.shape[d]]
    if not dims:
        return x
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    result = x.permute(order).sum([order.index(d) for d in dims], keepdim=True)
    return result.permute([order.index(d) for d in range(x.dim())])
