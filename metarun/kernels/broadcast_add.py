"""Addition of tensors that tasks share to tensors of their own, with a fast sum over tasks in the derivative."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function


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
        parameter, update = inputs
        ctx.shapes = parameter.shape, update.shape

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        parameter, update = ctx.shapes
        return sum_to_shape(g, parameter), sum_to_shape(g, update)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], parameter: Tensor, update: Tensor) -> tuple[Tensor, int]:
        first, second = in_dims
        parameter = parameter[None] if first is None else parameter.movedim(first, 0)
        update = update[None] if second is None else update.movedim(second, 0)
        return BroadcastAdd.apply(parameter, update), 0


def sum_to_shape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum ``x`` to ``shape`` of the same rank, reading its memory from beginning to end.

    Sums over tasks in another order, such as that of ``Tensor.sum_to_size``, take ten times as long.
    """
    if x.shape == shape:
        return x
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    dims = []
    for place, d in enumerate(order):
        if shape[d] < x.shape[d]:
            dims.append(place)
    return x.permute(order).sum(dims, keepdim=True).permute(sorted(range(x.dim()), key=order.__getitem__))
