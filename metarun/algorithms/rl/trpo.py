"""TRPO's step along the natural gradient, limited by a KL divergence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun import distributed
from metarun.algorithms.solve import Product, conjugate_gradient
from metarun.types import Fraction, NonNegative, Positive, Rate

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Parameters [P] -> the loss [] there, and the mean KL divergence [] of the policy from the old one."""


@dataclass(frozen=True)
class TRPOStep:
    """A step of TRPO (Schulman et al. 2015, arXiv:1502.05477, appendix C).

    The direction is the natural gradient, found by ``cg_iterations`` of conjugate gradients on the Fisher matrix plus
    ``damping``. The step is scaled to a mean divergence of ``max_kl``, then shortened by ``backtrack_ratio`` up to
    ``backtracks`` times until the divergence is at most ``max_kl`` and the loss is lower.
    """

    max_kl: Rate
    cg_iterations: Positive
    damping: NonNegative
    backtracks: Positive
    backtrack_ratio: Fraction

    def natural_step(self, gradient: Tensor, metric: Product) -> Tensor:
        """Return the step [P] along the natural gradient whose divergence is ``max_kl``, to be subtracted.

        Args:
            gradient: Gradient [P] of the loss.
            metric: Product of the Fisher matrix with a vector [P]. It is averaged over processes.
        """

        def damped(v: Tensor) -> Tensor:
            return distributed.average(metric(v)) + self.damping * v

        direction = conjugate_gradient(damped, gradient, self.cg_iterations)
        # (direction @ gradient is the same but for rounding, which in float32 is a per cent or more.)
        length = (2 * self.max_kl / (direction @ damped(direction)).clamp_min(1e-12)).sqrt()
        return length * direction

    @torch.no_grad()
    def line_search(self, theta: Tensor, step: Tensor, start: Tensor, evaluate: Evaluate) -> tuple[Tensor, ...]:
        """Take the longest shortening of ``step`` that lowers the loss below ``start`` within ``max_kl``, or none.

        On the CPU the search ends with the first that does. On other devices all are evaluated, and nothing is read
        back: the host would wait for the device at every step.

        Args:
            theta: Parameters [P].
            step: Step [P], to be subtracted.
            start: Loss [] at ``theta``.
            evaluate: Loss and divergence of candidates. They are averaged over processes.

        Returns:
            The new parameters [P], the decrease of the loss [], and the divergence [].
        """
        found: tuple[Tensor, ...] = theta, torch.zeros_like(start), torch.zeros_like(start)
        searching = torch.ones_like(start, dtype=torch.bool)
        for attempt in range(self.backtracks):
            candidate = theta - self.backtrack_ratio**attempt * step
            loss, kl = distributed.average(evaluate(candidate))
            accepted = searching & (loss < start) & (kl <= self.max_kl)
            new = candidate, start - loss, kl
            found = tuple(torch.where(accepted, after, before) for after, before in zip(new, found, strict=True))
            searching = searching & ~accepted
            if theta.device.type == "cpu" and not searching:
                break
        return found


def fisher(whitened: Tensor, at: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """Return the product ``v -> J^T J v`` with the Jacobian J of ``whitened`` with respect to the tensors ``at``.

    In coordinates in which the metric of the distribution is the identity, J^T J is the Fisher matrix of the policy,
    which is the Hessian of the divergence from it. J v is computed as the derivative of (J^T u) v with respect to u, so
    that no second derivative is needed. The graph of ``whitened`` is kept.
    """
    probe = torch.zeros_like(whitened, requires_grad=True)
    pulled = torch.autograd.grad(whitened, at, probe, create_graph=True)

    def product(v: Sequence[Tensor]) -> Sequence[Tensor]:
        (pushed,) = torch.autograd.grad(pulled, probe, v, retain_graph=True)
        return torch.autograd.grad(whitened, at, pushed, retain_graph=True)

    return product
