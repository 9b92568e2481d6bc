"""Addition of tensors that tasks share to tensors of their own, with a fast sum over tasks in the derivative."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from metarun.kernels.norm import align_task_dims


def broadcast_add(parameter: Tensor, update: Tensor) -> Tensor:
    """Return ``parameter + update``, both of the same shape for one task.

    Under ``torch.func.vmap`` either may be shared by all tasks. Its gradient is then summed over tasks in memory order.
    """
    return BroadcastAdd.apply(parameter, update)


class BroadcastAdd(Function):
    """Sum of two tensors of equal rank, each with one entry per task or a single one for all tasks."""

    @staticmethod
    def forward(parameter: Tensor, update: Tensor) -> Tensor:
        return parameter + update

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.shapes = [t.shape for t in inputs]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        return tuple(sum_to_shape(g, shape) for shape in ctx.shapes)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], parameter: Tensor, update: Tensor) -> tuple[Tensor, int]:
        both = (t[None] if dim is None else t for t, dim in zip((parameter, update), in_dims, strict=True))
        return BroadcastAdd.apply(*align_task_dims(list(both), [dim or 0 for dim in in_dims])), 0


def sum_to_shape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum ``x`` to ``shape`` of the same rank, reading its memory from beginning to end.

    Sums over tasks in another order, such as that of ``Tensor.sum_to_size``, take ten times as long.
    """
    dims = [d for d in range(x.dim()) if shape[d] < x.shape[d]]
    if not dims:
        return x
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    result = x.permute(order).sum([order.index(d) for d in dims], keepdim=True)
    return result.permute([order.index(d) for d in range(x.dim())])
