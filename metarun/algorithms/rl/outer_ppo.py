"""PPO as the outer step, that of ProMP; with one epoch and no clipping, plain policy-gradient descent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metarun import distributed
from metarun.algorithms.base import Metrics
from metarun.algorithms.outer_optimizer import Adam
from metarun.algorithms.rl.distributions import Distribution
from metarun.algorithms.rl.policy_gradient import Experience, OuterStep, PolicyGradientLearner, over_steps
from metarun.types import NonNegative, Positive, Rate


class OuterPPO(OuterStep):
    """``epochs`` steps of Adam of size ``outer_lr`` on the outer loss, adapting anew from where each one led.

    Likelihood ratios are rewarded up to ``clip`` from 1 (PPO, Schulman et al. 2017, arXiv:1707.06347; null: as far as
    they go, so that one epoch is a vanilla policy-gradient step). ``kl_penalty`` weighs the divergence of the policy
    before each inner step from the one that its rollouts were made with (Rothfuss et al. 2019, arXiv:1810.06784,
    equation 13); gradients longer than ``max_grad_norm`` are shortened to it.
    """

    def __init__(
        self,
        *,
        epochs: Positive,
        clip: Rate | None,
        kl_penalty: NonNegative,
        outer_lr: Rate,
        max_grad_norm: Rate | None,
    ) -> None:
        self.epochs, self.clip, self.kl_penalty = epochs, clip, kl_penalty
        self.outer_lr, self.max_grad_norm = outer_lr, max_grad_norm

    def prepare(self, learner: PolicyGradientLearner) -> None:
        learner.optimizer = Adam(learner.model.parameters(), lr=self.outer_lr)

    def step(self, learner: PolicyGradientLearner, path: Sequence[Experience], post: Experience) -> Metrics:
        optimizer, parameters = learner.optimizer, list(learner.model.parameters())
        assert optimizer is not None
        before, after = learner.repeat(self.policies, learner, path, post)
        norms = []
        for _ in range(self.epochs):
            optimizer.zero_grad()
            learner.backward(self.loss, learner, path, post, before)
            distributed.average_gradients(parameters)
            norms.append(nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or float("inf")))
            optimizer.step()
        last, kl = learner.repeat(self.result, learner, path, post, after)
        return {"loss": last, "kl": kl, "gradient_norm": torch.stack(norms).mean()}

    @torch.no_grad()
    def policies(
        self, learner: PolicyGradientLearner, path: Sequence[Experience], post: Experience
    ) -> tuple[list[Distribution], Distribution]:
        """Return the action distributions before each inner step, and those after adaptation."""
        phis = learner.adapted(learner.flat(), path, len(post.advantage))
        before = [learner.policy(phi, e.rollout) for phi, e in zip(phis, path, strict=False)]
        return before, learner.policy(phis[-1], post.rollout)

    def loss(
        self,
        learner: PolicyGradientLearner,
        path: Sequence[Experience],
        post: Experience,
        before: Sequence[Distribution],
    ) -> Tensor:
        """Return the loss [] of an epoch."""
        theta = torch.cat([p.flatten() for p in learner.model.parameters()])
        loss, phis, _ = learner.outer_loss(theta, path, post, self.clip)
        for phi, experience, old in zip(phis, path, before, strict=False):
            if self.kl_penalty:
                loss = loss + self.kl_penalty * learner.divergence(phi, experience.rollout, old).mean()
        return loss

    @torch.no_grad()
    def result(
        self, learner: PolicyGradientLearner, path: Sequence[Experience], post: Experience, after: Distribution
    ) -> tuple[Tensor, Tensor]:
        """Return the loss [] after all epochs, and the divergence [] of the adapted policies from ``after``."""
        loss, _, policy = learner.outer_loss(learner.flat(), path, post)
        return loss, over_steps(policy.kl_from(after), post.rollout).mean()  # type: ignore[arg-type]

    def protocol(self) -> dict[str, Any]:
        return {"outer": "PPO" if self.clip else "policy gradient", "epochs": self.epochs}
