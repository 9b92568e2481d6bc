"""TRPO as the outer step: the natural gradient through the adaptation, as far as a divergence allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metarun.algorithms.base import Metrics
from metarun.algorithms.rl.policy_gradient import Experience, OuterStep, PolicyGradientLearner
from metarun.algorithms.solve import Product, conjugate_gradient
from metarun.types import Fraction, NonNegative, Positive, Rate


class TrustRegion(OuterStep):
    """TRPO (Schulman et al. 2015, arXiv:1502.05477) of the initialisation, as in MAML (arXiv:1703.03400, section 4.3).

    The step is at most ``max_kl`` long in mean divergence of the adapted policies, in the direction that solves the
    Fisher metric (plus ``damping``) by ``cg_iterations`` of conjugate gradients, shortened by ``backtrack_ratio`` up
    to ``backtracks`` times until it keeps that and improves the surrogate.

    As phi' = phi - a grad L(phi), the derivative of an inner step is I - a M H, with H the symmetric Hessian of L and M
    1 for adapted parameters, so the metric is an exact chain of Hessian-vector products around the Fisher metric of
    the adapted policy, and nothing is differentiated three times. ``fisher_rollouts`` is how many of a task's
    episodes the metric is computed on; the gradient and the line search, which enforces ``max_kl``, use all.
    """

    def __init__(
        self,
        *,
        max_kl: Rate,
        fisher_rollouts: Positive,
        cg_iterations: Positive,
        damping: NonNegative,
        backtracks: Positive,
        backtrack_ratio: Fraction,
    ) -> None:
        self.max_kl, self.fisher_rollouts = max_kl, fisher_rollouts
        self.cg_iterations, self.damping = cg_iterations, damping
        self.backtracks, self.backtrack_ratio = backtracks, backtrack_ratio

    def step(self, learner: PolicyGradientLearner, path: Sequence[Experience], post: Experience) -> Metrics:
        theta = learner.flat().requires_grad_()
        loss, phis = learner.outer_loss(theta, path, post)
        (gradient,) = torch.autograd.grad(loss, theta)
        theta, phis, some = theta.detach(), [phi.detach() for phi in phis], self.fisher_rollouts
        metric = self.metric(learner, phis, [experience.first(some) for experience in path], post.first(some))
        direction = conjugate_gradient(metric, gradient, self.cg_iterations)
        length = (2 * self.max_kl / (direction @ metric(direction)).clamp_min(1e-12)).sqrt()
        gain, kl = self.line_search(learner, theta, length * direction, path, post, loss.detach(), phis[-1])
        # The gradient's norm says it where that is not finite: the line search would just refuse.
        return {"gain": gain, "kl": kl, "gradient_norm": gradient.norm()}

    def metric(
        self, learner: PolicyGradientLearner, phis: Sequence[Tensor], path: Sequence[Experience], post: Experience
    ) -> Product:
        """The Fisher metric at the initialisation, ``v -> F v`` [P]; ``phis`` are the parameters around each step."""
        curvatures = [] if learner.first_order else [
            hessian(learner.inner_loss, phi, experience) for phi, experience in zip(phis, path, strict=False)
        ]  # fmt: skip
        with torch.no_grad():
            old = learner.policy(phis[-1], post.rollout)
        fisher = hessian(lambda phi, _: learner.divergence(phi, post.rollout, old), phis[-1], post)

        def product(v: Tensor) -> Tensor:
            tasks = v.expand(len(phis[-1]), -1)
            for curvature in curvatures:
                tasks = tasks - learner.inner_lr * learner.adaptable * curvature(tasks)
            tasks = fisher(tasks)
            for curvature in reversed(curvatures):
                tasks = tasks - learner.inner_lr * curvature(learner.adaptable * tasks)
            return tasks.mean(0) + self.damping * v

        return product

    @torch.no_grad()
    def line_search(
        self,
        learner: PolicyGradientLearner,
        theta: Tensor,
        step: Tensor,
        path: Sequence[Experience],
        post: Experience,
        start: Tensor,
        phi: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Take the longest shortening of ``step`` that lowers the outer loss within ``max_kl``, or none.

        ``start`` is the loss at ``theta``, ``phi`` what that adapts to. Returns the improvement and the divergence.
        Whether a candidate is accepted is read back from the device: to avoid it is to compute all candidates always,
        each an adaptation of every task, where mostly the first is taken.
        """
        old = learner.policy(phi, post.rollout)
        for attempt in range(self.backtracks):
            candidate = theta - self.backtrack_ratio**attempt * step
            there, phis = learner.outer_loss(candidate, path, post)
            gain = start - there
            kl = learner.divergence(phis[-1], post.rollout, old).mean()
            if theta.is_meta or bool((gain > 0) & (kl <= self.max_kl)):
                learner.load(candidate)
                return gain, kl
        return torch.zeros_like(start), torch.zeros_like(start)

    def protocol(self) -> dict[str, Any]:
        return {"outer": "TRPO", "max_kl": self.max_kl}


def hessian(losses: Any, phi: Tensor, experience: Experience) -> Product:
    """That of each task's loss at ``phi`` [T, P], as ``v -> H v`` for ``v`` of the same shape."""
    at = phi.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(losses(at, experience).sum(), at, create_graph=True)
    return lambda v: torch.autograd.grad(gradient, at, v, retain_graph=True)[0]
