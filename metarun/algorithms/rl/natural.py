"""The step of TRPO: along the natural gradient, as far as a divergence allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun import distributed
from metarun.algorithms.solve import Product, conjugate_gradient
from metarun.types import Fraction, NonNegative, Positive, Rate

Judge = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From parameters [P] to the loss there, and the policy's mean divergence from what it was."""


@dataclass(frozen=True)
class NaturalStep:
    """A step of TRPO (Schulman et al. 2015, arXiv:1502.05477, appendix C).

    It is at most ``max_kl`` long in mean divergence, in the direction that solves the Fisher metric (plus ``damping``)
    by ``cg_iterations`` of conjugate gradients, shortened by ``backtrack_ratio`` up to ``backtracks`` times until it
    keeps that and lowers the loss.
    """

    max_kl: Rate
    cg_iterations: Positive
    damping: NonNegative
    backtracks: Positive
    backtrack_ratio: Fraction

    def take(self, theta: Tensor, loss: Tensor, gradient: Tensor, metric: Product, judge: Judge) -> tuple[Tensor, ...]:
        """From ``theta`` [P], where the loss and its gradient are given: the new parameters, gain and divergence.

        All are of this process's tasks, and averaged with those of the others where there are others.
        """
        loss, gradient = distributed.average([loss, gradient])

        def damped(v: Tensor) -> Tensor:
            return distributed.average(metric(v)) + self.damping * v

        direction = conjugate_gradient(damped, gradient, self.cg_iterations)
        # (direction @ gradient is the same but for rounding, which in float32 is a per cent or more.)
        length = (2 * self.max_kl / (direction @ damped(direction)).clamp_min(1e-12)).sqrt()
        return self.line_search(theta, length * direction, loss, judge)

    @torch.no_grad()
    def line_search(self, theta: Tensor, step: Tensor, start: Tensor, judge: Judge) -> tuple[Tensor, ...]:
        """Take the longest shortening of ``step`` that lowers the loss below ``start`` within ``max_kl``, or none.

        Whether a candidate is accepted is read back from the device: to avoid it is to judge all candidates always,
        where mostly the first is taken.
        """
        for attempt in range(self.backtracks):
            candidate = theta - self.backtrack_ratio**attempt * step
            loss, kl = distributed.average(judge(candidate))
            if theta.is_meta or bool((loss < start) & (kl <= self.max_kl)):
                return candidate, start - loss, kl
        return theta, torch.zeros_like(start), torch.zeros_like(start)


def fisher(whitened: Tensor, at: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """``v -> J^T J v``, J being the Jacobian of ``whitened`` by tensors ``at``, whose graph it needs.

    Where the coordinates' own metric is the identity that is the Fisher metric of the policy, and so the Hessian of the
    divergence from it. J v is the derivative by u of (J^T u) v: no second derivative is computed.
    """
    probe = torch.zeros_like(whitened, requires_grad=True)
    pulled = torch.autograd.grad(whitened, at, probe, create_graph=True)

    def product(v: Sequence[Tensor]) -> Sequence[Tensor]:
        (pushed,) = torch.autograd.grad(pulled, probe, v, retain_graph=True)
        return torch.autograd.grad(whitened, at, pushed, retain_graph=True)

    return product
