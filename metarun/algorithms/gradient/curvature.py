"""Meta-Curvature: gradients multiplied by learned matrices along each dimension of their tensor."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from metarun.algorithms.gradient.parameters import Parameters
from metarun.algorithms.gradient.pieces import Rule, State
from metarun.types import Count


class MetaCurvature(Rule):
    """The update u = -lr MC(g), with learned matrices along the outputs, inputs and kernel positions of a gradient.

    Park & Oliva 2019, arXiv:1902.03356, section 3. For the gradient G [O, I, F] of a convolution, with its kernel
    dimensions flattened into F,

        MC(G)[o, i, f] = sum over o', i', f' of  M_out[o, o']  M_in[i, i']  M_f[f, f']  G[o', i', f'],

    which multiplies G by a Kronecker-factored matrix. A linear layer has no M_f. All factors are initialised as the
    identity, which is gradient descent with ``algorithm.inner_lr``. That rate is not learned.

    Args:
        whole_up_to: Largest size of a dimension with a full matrix. Larger dimensions, and vectors such as biases, have
            a diagonal one.
    """

    fits_any_parameters = False

    def __init__(self, *, whole_up_to: Count) -> None:
        super().__init__()
        self.whole_up_to = whole_up_to

    def prepare(self, parameters: Parameters, lr: float, steps: int) -> None:
        super().prepare(parameters, lr, steps)
        self.factors = nn.ParameterList(self.identity(p, n) for p in parameters.values() for n in modes(p))

    def identity(self, p: Tensor, n: int) -> Tensor:
        """Return the initial factor of a dimension of ``p``: a matrix [n, n], or a diagonal [n]."""
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
    """Return the sizes of the dimensions with a factor: outputs, inputs, and all others flattened into one."""
    return [*p.shape[:2], prod(p.shape[2:])] if p.dim() > 2 else [*p.shape] or [1]


def along(g: Tensor, factor: Tensor, dim: int) -> Tensor:
    """Multiply ``g`` by a matrix [n, n] or a diagonal [n] along dimension ``dim`` of size n."""
    last = g.movedim(dim, -1)
    return (last @ factor.T if factor.dim() == 2 else last * factor).movedim(-1, dim)
