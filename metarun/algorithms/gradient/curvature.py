"""Meta-Curvature: gradients transformed along each dimension of their tensor by learned matrices."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from metarun.algorithms.gradient.parameters import Parameters
from metarun.algorithms.gradient.pieces import Rule, State
from metarun.types import Count


class MetaCurvature(Rule):
    """u = -lr MC(g): each tensor's gradient times a learned matrix along its outputs, its inputs and its places.

    Park & Oliva 2019, arXiv:1902.03356, section 3: for a convolution's gradient G [O, I, places] (a kernel's
    height and width are one dimension, and so is any further one)

        MC(G)[o, i, f] = sum over o', i', f' of  M_out[o, o']  M_in[i, i']  M_f[f, f']  G[o', i', f'],

    which is a Kronecker-factored matrix times all of G; a linear layer has no M_f. A vector (a bias) has one
    factor a number, and so has a dimension longer than ``whole_up_to``, where a matrix would be too large. All
    start as the identity, that is as plain descent by ``algorithm.inner_lr``, which stays as it is.
    """

    def __init__(self, *, whole_up_to: Count) -> None:
        super().__init__()
        self.whole_up_to = whole_up_to

    def prepare(self, parameters: Parameters, lr: float, steps: int) -> None:
        super().prepare(parameters, lr, steps)
        self.factors = nn.ParameterList(self.identity(p, n) for p in parameters.values() for n in modes(p))

    def identity(self, p: Tensor, n: int) -> Tensor:
        """A matrix [n, n] for a dimension of ``p``, or the diagonal [n] of one."""
        whole = p.dim() > 1 and n <= self.whole_up_to
        return torch.eye(n, dtype=p.dtype, device=p.device) if whole else p.new_ones(n)

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        changes, factors = {}, iter(self.factors)
        for name, g in gradients.items():
            shape = modes(g)
            moved = g.reshape(shape)
            for dim in range(len(shape)):
                moved = along(moved, next(factors), dim)
            changes[name] = -self.lr * moved.reshape(g.shape)
        return changes, state

    def extra_repr(self) -> str:
        return f"whole_up_to={self.whole_up_to}"


def modes(p: Tensor) -> list[int]:
    """The dimensions that have a factor each: outputs, inputs, and all others as one."""
    return [*p.shape[:2], prod(p.shape[2:])] if p.dim() > 2 else [*p.shape] or [1]


def along(g: Tensor, factor: Tensor, dim: int) -> Tensor:
    """``g`` times a matrix [n, n], or a diagonal [n], along dimension ``dim`` of size n."""
    last = g.movedim(dim, -1)
    return (last @ factor.T if factor.dim() == 2 else last * factor).movedim(-1, dim)
