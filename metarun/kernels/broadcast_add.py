"""Addition of tensors that tasks share to tensors of their own, with a fast sum over tasks in the derivative."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function


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
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients, summed to the shapes of the arguments in the order of memory.

        Sums over tasks in another order, such as that of ``Tensor.sum_to_size``, take ten times as long.
        """
        gradients = []
        for shape in ctx.shapes:
            if shape == g.shape:
                gradients.append(g)
                continue
            order = sorted(range(g.dim()), key=g.stride, reverse=True)
            dims = [place for place, d in enumerate(order) if shape[d] < g.shape[d]]
            back = sorted(range(g.dim()), key=order.__getitem__)
            gradients.append(g.permute(order).sum(dims, keepdim=True).permute(back))
        return tuple(gradients)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], parameter: Tensor, update: Tensor) -> tuple[Tensor, int]:
        first, second = in_dims
        parameter = parameter[None] if first is None else parameter.movedim(first, 0)
        update = update[None] if second is None else update.movedim(second, 0)
        return BroadcastAdd.apply(parameter, update), 0


broadcast_add = BroadcastAdd.apply
"""Returns the sum of two tensors that have the same shape for one task.

Under ``torch.func.vmap`` either may be shared by all tasks. Its gradient is then summed over tasks in memory order.
"""
