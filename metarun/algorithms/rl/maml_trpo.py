"""MAML for control: policy-gradient steps inside, a trust-region step outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from metarun.algorithms.base import Metrics
from metarun.algorithms.functional import call_with
from metarun.algorithms.rl.advantage import gae, linear_baseline, normalised
from metarun.algorithms.rl.base import ControlAlgorithm
from metarun.algorithms.rl.collect import Percept, Rollout, collect
from metarun.algorithms.rl.distributions import Distribution, distribution
from metarun.algorithms.rl.trpo import differentiate
from metarun.algorithms.solve import Product, conjugate_gradient
from metarun.tasks.base import Spec
from metarun.tasks.rl.base import Environment
from metarun.types import Count, Fraction, NonNegative, Positive, Rate


class Experience(NamedTuple):
    """Rollouts, and the normalised advantages and the log-probabilities of their actions, [T, E, S]."""

    rollout: Rollout
    advantage: Tensor
    logp: Tensor

    def first(self, copies: int) -> Experience:
        """The first ``copies`` of each task's rollouts."""
        return Experience(self.rollout.first(copies), self.advantage[:, :copies], self.logp[:, :copies])


class MAMLTRPO(ControlAlgorithm):
    """MAML-TRPO (Finn, Abbeel & Levine 2017, arXiv:1703.03400, Algorithm 3; appendix A.2).

    ``inner_steps`` vanilla policy-gradient steps of size ``inner_lr``, each on ``rollouts`` episodes a
    task, adapt all parameters (0: one policy for all tasks); TRPO (Schulman et al. 2015) on the episodes
    after them moves the initialisation, at most ``max_kl`` away in mean divergence of the adapted
    policies. Advantages are generalised, over a linear baseline fitted to each task, and normalised.
    ``inner_loss`` is ``likelihood``, as in the authors' code, or ``ratio``, whose curvature credits
    actions with what adapting to them brings. ``first_order`` takes the adaptation's derivative for the
    identity. At test, ``test_steps`` steps on ``test_rollouts`` episodes each, their sizes ``test_lr``
    with the last repeated (null: ``inner_lr``). The model must run with parameters ``[T, ...]``: build it
    of :class:`~metarun.models.policies.TaskLinear`.

    Parameters of T tasks are one matrix ``phi`` [T, P]. As phi' = phi - a grad L(phi), the derivative of a
    step is the symmetric I - a H with H the Hessian of L, so both the meta-gradient and the Fisher metric,
    which is (I - a H) F (I - a H) with F that of the adapted policy, are exact chains of Hessian-vector
    products and nothing is differentiated three times. ``fisher_rollouts`` is how many of a task's episodes
    the H and F of the metric are computed on; the gradient and the line search, which enforces ``max_kl``,
    use all.
    """

    roles: ClassVar[tuple[str, ...]] = ("policy",)

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        rollouts: Positive,
        inner_steps: Count,
        inner_lr: Rate,
        inner_loss: Literal["likelihood", "ratio"],
        first_order: bool,
        test_rollouts: Positive,
        test_steps: Count,
        test_lr: Sequence[Rate] | None,
        discount: Fraction,
        gae_lambda: Fraction,
        max_kl: Rate,
        fisher_rollouts: Positive,
        cg_iterations: Positive,
        damping: NonNegative,
        backtracks: Positive,
        backtrack_ratio: Fraction,
    ) -> None:
        super().__init__()
        self.model, self.spec = model, spec
        self.episodes, self.inner_steps, self.inner_lr = rollouts, inner_steps, inner_lr
        self.inner_loss_of, self.first_order = inner_loss, first_order
        self.test_rollouts, self.test_steps = test_rollouts, test_steps
        self.test_lr = list(test_lr or [inner_lr])
        self.discount, self.gae_lambda = discount, gae_lambda
        self.max_kl, self.fisher_rollouts = max_kl, min(fisher_rollouts, rollouts)
        self.cg_iterations, self.damping = cg_iterations, damping
        self.backtracks, self.backtrack_ratio = backtracks, backtrack_ratio
        self.shapes = {name: p.shape for name, p in model.named_parameters()}

    # The policies

    def flat(self) -> Tensor:
        """The meta-learned initialisation, [P]."""
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def load(self, flat: Tensor) -> None:
        """The inverse of :meth:`flat`."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        with torch.no_grad():
            for parameter, part in zip(self.model.parameters(), parts, strict=True):
                parameter.copy_(part.view_as(parameter))

    def named(self, phi: Tensor) -> dict[str, Tensor]:
        """Parameters [T, ...] by name."""
        parts = phi.split([shape.numel() for shape in self.shapes.values()], dim=1)
        each = zip(self.shapes.items(), parts, strict=True)
        return {name: part.view(-1, *shape) for (name, shape), part in each}

    def policy(self, phi: Tensor, rollout: Rollout) -> Distribution:
        """Action distributions [T, E, S] of each task's policy at its rollouts' observations."""
        seen = rollout.observation
        output = call_with(self.named(phi), self.model, seen.flatten(1, 2))
        return distribution(self.spec, output.view(*seen.shape[:3], -1))

    def experience(self, env: Environment, phi: Tensor, episodes: int, generator: torch.Generator | None) -> Experience:
        """``episodes`` rollouts a task with its policy."""
        parameters = self.named(phi)

        def act(percept: Percept) -> Tensor:
            return call_with(parameters, self.model, percept.observation)

        rollout = collect(env, self.spec, act, episodes, 1, generator)
        value = linear_baseline(rollout.observation, rollout.reward, rollout.running, self.discount)
        advantage = gae(rollout.reward, value, rollout.running, self.discount, self.gae_lambda)
        with torch.no_grad():
            logp = self.policy(phi, rollout).log_prob(rollout.action)
        return Experience(rollout, normalised(advantage, rollout.running, (1, 2)), logp)

    # The inner loop

    def inner_loss(self, phi: Tensor, experience: Experience) -> Tensor:
        """What an inner step descends, [T]: minus mean advantage times log-likelihood or likelihood ratio.

        Both have the policy gradient where the rollouts were made. Only the ratio's second derivative is also
        that of the expected return (Rothfuss et al. 2019, arXiv:1810.06784).
        """
        if self.inner_loss_of == "ratio":
            return self.surrogate(phi, experience)
        rollout = experience.rollout
        return -over_steps(self.policy(phi, rollout).log_prob(rollout.action) * experience.advantage, rollout)

    def surrogate(self, phi: Tensor, experience: Experience) -> Tensor:
        """Minus the mean advantage times the likelihood ratio to when the action was taken, [T]."""
        rollout = experience.rollout
        ratio = (self.policy(phi, rollout).log_prob(rollout.action) - experience.logp).exp()
        return -over_steps(ratio * experience.advantage, rollout)

    def inner_step(self, phi: Tensor, experience: Experience, lr: float) -> Tensor:
        """One policy-gradient step of every task, [T, P]."""
        with torch.enable_grad():
            phi = phi.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.inner_loss(phi, experience).sum(), phi)
        return phi.detach() - lr * gradient

    def adapted(self, theta: Tensor, path: Sequence[Experience], tasks: int) -> Tensor:
        """The parameters that ``theta`` [P] adapts to on the experience of each step, [T, P]."""
        phi = theta.expand(tasks, -1)
        for experience in path:
            phi = self.inner_step(phi, experience, self.inner_lr)
        return phi

    def rollouts(self, env: Environment) -> Iterator[Rollout]:
        generator = env.generator()
        phi = self.flat().expand(env.tasks, -1)
        for step in range(self.test_steps + 1):
            experience = self.experience(env, phi, self.test_rollouts, generator)
            yield experience.rollout
            if step < self.test_steps:
                phi = self.inner_step(phi, experience, self.test_lr[min(step, len(self.test_lr) - 1)])

    # The outer loop

    def divergence(self, phi: Tensor, rollout: Rollout, old: Distribution) -> Tensor:
        """Mean KL(old || policy of ``phi``) over the steps of a rollout, [T]."""
        return over_steps(self.policy(phi, rollout).kl_from(old), rollout)  # type: ignore[arg-type]

    def pulled_back(self, v: Tensor, curvatures: Sequence[Product]) -> Tensor:
        """The transposed derivative of the adaptation times ``v`` [T, P], step by step from the last."""
        for curvature in reversed(curvatures):
            v = v - self.inner_lr * curvature(v)
        return v

    def pushed_forward(self, v: Tensor, curvatures: Sequence[Product]) -> Tensor:
        """The derivative of the adaptation times ``v`` [T, P]."""
        for curvature in curvatures:
            v = v - self.inner_lr * curvature(v)
        return v

    def metric(self, phis: Sequence[Tensor], path: Sequence[Experience], post: Rollout) -> Product:
        """The Fisher metric at ``theta``, ``v -> F v`` [P]; ``phis`` are the parameters around each step."""
        curvatures = self.curvatures(phis, path)
        phi = phis[-1].detach().requires_grad_()
        with torch.no_grad():
            old = self.policy(phi, post)
        _, fisher = differentiate(self.divergence(phi, post, old).sum(), phi)

        def product(v: Tensor) -> Tensor:
            tasks = self.pushed_forward(v.expand(len(phi), -1), curvatures)
            return self.pulled_back(fisher(tasks), curvatures).mean(0) + self.damping * v

        return product

    def curvatures(self, phis: Sequence[Tensor], path: Sequence[Experience]) -> list[Product]:
        """The Hessian of each inner step's loss; none where first-order, as if it were zero."""
        if self.first_order:
            return []
        found = []
        for phi, experience in zip(phis, path, strict=False):
            at = phi.detach().requires_grad_()
            found.append(differentiate(self.inner_loss(at, experience).sum(), at)[1])
        return found

    def meta_gradient(self, phis: Sequence[Tensor], path: Sequence[Experience], post: Experience) -> Tensor:
        """The gradient of the mean outer loss by ``theta``, [P]."""
        phi = phis[-1].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.surrogate(phi, post).sum(), phi)
        return self.pulled_back(gradient, self.curvatures(phis, path)).mean(0)

    def meta_step(self, batch: Environment, iteration: int) -> Metrics:
        self.train()
        generator = batch.generator()
        theta = self.flat()
        phis, path = [theta.expand(batch.tasks, -1)], []
        for _ in range(self.inner_steps):
            path.append(self.experience(batch, phis[-1], self.episodes, generator))
            phis.append(self.inner_step(phis[-1], path[-1], self.inner_lr))
        post = self.experience(batch, phis[-1], self.episodes, generator)

        gradient = self.meta_gradient(phis, path, post)
        some = self.fisher_rollouts
        metric = self.metric(phis, [experience.first(some) for experience in path], post.rollout.first(some))
        direction = conjugate_gradient(metric, gradient, self.cg_iterations)
        length = (2 * self.max_kl / (direction @ metric(direction)).clamp_min(1e-12)).sqrt()
        gain, kl = self.line_search(theta, length * direction, path, post, phis[-1])

        before = (path[0] if path else post).rollout.returns().mean()
        after = post.rollout.returns().mean()
        return {
            "return": batch.episodes * after,
            "return_before": batch.episodes * before,
            "gain": gain,
            "kl": kl,
            # Says it where the gradient is not finite: the line search would just refuse.
            "gradient_norm": gradient.norm(),
        }

    @torch.no_grad()
    def line_search(
        self, theta: Tensor, step: Tensor, path: Sequence[Experience], post: Experience, phi: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take the longest shortening of ``step`` that lowers the surrogate within ``max_kl``, or none.

        Returns the surrogate's improvement and the divergence. Whether a candidate is accepted is read back
        from the device: to avoid it is to compute all candidates always, each an adaptation of every task,
        where mostly the first is taken.
        """
        old = self.policy(phi, post.rollout)
        start = self.surrogate(phi, post).mean()
        for attempt in range(self.backtracks):
            candidate = theta - self.backtrack_ratio**attempt * step
            there = self.adapted(candidate, path, len(phi))
            gain = start - self.surrogate(there, post).mean()
            kl = self.divergence(there, post.rollout, old).mean()
            if theta.is_meta or bool((gain > 0) & (kl <= self.max_kl)):
                self.load(candidate)
                return gain, kl
        return torch.zeros_like(start), torch.zeros_like(start)

    def protocol(self) -> dict[str, Any]:
        return {
            "inner_steps": self.inner_steps,
            "inner_lr": self.inner_lr,
            "inner_loss": self.inner_loss_of,
            "first_order": self.first_order,
            "rollouts": self.episodes,
            "test_rollouts": self.test_rollouts,
            "test_steps": self.test_steps,
            "test_lr": self.test_lr,
        }


def over_steps(values: Tensor, rollout: Rollout) -> Tensor:
    """Each task's mean of ``values`` [T, E, S] over the running steps, [T]."""
    return (values * rollout.running).sum((1, 2)) / rollout.running.sum((1, 2))
