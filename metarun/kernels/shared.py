"""Addition of one tensor for each task to a tensor that they share, with a fast sum over tasks in the derivative."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function


class AddToShared(Function):
    """Sum of a tensor [...] that tasks share and one tensor for each of T tasks [T, ...]."""

    @staticmethod
    def forward(ctx: Any, shared: Tensor, each: Tensor) -> Tensor:
        return shared[None] + each  # with the dimension of tasks, the sum of a single task has the same layout

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return both gradients, the first summed over tasks in the order of memory.

        Sums over tasks in another order, such as that of ``Tensor.sum_to_size``, take ten times as long.
        """
        order = sorted(range(g.dim()), key=g.stride, reverse=True)
        back = sorted(range(g.dim()), key=order.__getitem__)
        return g.permute(order).sum(order.index(0), keepdim=True).permute(back)[0], g


add_to_shared = AddToShared.apply
"""Returns the sum [T, ...] of a tensor [...] that T tasks share and one with an entry for each of them [T, ...]."""
