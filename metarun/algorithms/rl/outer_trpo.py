"""TRPO as the outer step, with the natural gradient through the adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metarun import distributed
from metarun.algorithms.base import Metrics
from metarun.algorithms.rl.distributions import Distribution
from metarun.algorithms.rl.policy_gradient import Experience, OuterStep, PolicyGradientLearner, over_steps
from metarun.algorithms.rl.trpo import TRPOStep, fisher
from metarun.algorithms.solve import Product
from metarun.types import Fraction, NonNegative, Positive, Rate


class OuterTRPO(OuterStep):
    """TRPO of the initialisation, as in MAML (arXiv:1703.03400, section 4.3): a step of
    :class:`~metarun.algorithms.rl.trpo.TRPOStep` in the divergence of the adapted policies.

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
        self.fisher_rollouts = fisher_rollouts
        self.trpo = TRPOStep(max_kl, cg_iterations, damping, backtracks, backtrack_ratio)

    def step(self, learner: PolicyGradientLearner, path: Sequence[Experience], post: Experience) -> Metrics:
        theta = learner.flat()
        loss, gradient, step, policy = learner.repeat(self.direction, learner, theta, path, post)

        def evaluate(candidate: Tensor) -> tuple[Tensor, Tensor]:
            return learner.repeat(self.evaluate, learner, candidate, path, post, policy)

        theta, gain, kl = self.trpo.line_search(theta, step, loss, evaluate)
        learner.load(theta)
        # The gradient's norm says it where that is not finite: the line search would just refuse.
        return {"gain": gain, "kl": kl, "gradient_norm": gradient.norm()}

    def direction(
        self, learner: PolicyGradientLearner, theta: Tensor, path: Sequence[Experience], post: Experience
    ) -> tuple[Tensor, Tensor, Tensor, Distribution]:
        """Return the outer loss [] at ``theta`` [P], its gradient [P], the natural step [P], the adapted policies."""
        theta = theta.detach().requires_grad_()
        loss, phis, policy = learner.outer_loss(theta, path, post)
        (gradient,) = torch.autograd.grad(loss, theta)
        loss, gradient = distributed.average([loss.detach(), gradient])
        phis, some = [phi.detach() for phi in phis], self.fisher_rollouts
        metric = self.metric(learner, phis, [experience.first(some) for experience in path], post.first(some))
        return loss, gradient, self.trpo.natural_step(gradient, metric), policy

    def evaluate(
        self,
        learner: PolicyGradientLearner,
        candidate: Tensor,
        path: Sequence[Experience],
        post: Experience,
        old: Distribution,
    ) -> tuple[Tensor, Tensor]:
        """Return the outer loss [] at a candidate [P], and the divergence [] of its adapted policies from ``old``."""
        loss, _, policy = learner.outer_loss(candidate, path, post)
        return loss, over_steps(policy.kl_from(old), post.rollout).mean()  # type: ignore[arg-type]

    def metric(
        self, learner: PolicyGradientLearner, phis: Sequence[Tensor], path: Sequence[Experience], post: Experience
    ) -> Product:
        """The Fisher metric at the initialisation, ``v -> F v`` [P]; ``phis`` are the parameters around each step."""
        curvatures = [] if learner.first_order else [
            hessian(learner.inner_loss, phi, experience) for phi, experience in zip(phis, path, strict=False)
        ]  # fmt: skip
        at, mask = phis[-1].detach().requires_grad_(), post.rollout.mask.to(phis[-1].dtype)
        share = (mask / mask.sum((1, 2), keepdim=True)).sqrt()
        adapted = fisher(learner.policy(at, post.rollout).whitened() * share[..., None], [at])

        def product(v: Tensor) -> Tensor:
            tasks = v.expand(len(phis[-1]), -1)
            for curvature in curvatures:
                tasks = tasks - learner.inner_lr * learner.adaptable * curvature(tasks)
            (tasks,) = adapted([tasks])
            for curvature in reversed(curvatures):
                tasks = tasks - learner.inner_lr * curvature(learner.adaptable * tasks)
            return tasks.mean(0)

        return product

    def protocol(self) -> dict[str, Any]:
        return {"outer": "TRPO", "max_kl": self.trpo.max_kl}


def hessian(losses: Any, phi: Tensor, experience: Experience) -> Product:
    """That of each task's loss at ``phi`` [T, P], as ``v -> H v`` for ``v`` of the same shape."""
    at = phi.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(losses(at, experience).sum(), at, create_graph=True)
    return lambda v: torch.autograd.grad(gradient, at, v, retain_graph=True)[0]
