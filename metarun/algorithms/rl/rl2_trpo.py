"""RL2 by TRPO, as its authors trained it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from metarun import distributed
from metarun.algorithms.base import Metrics
from metarun.algorithms.functional import call_with
from metarun.algorithms.outer_optimizer import Adam
from metarun.algorithms.rl.advantage import masked_mean
from metarun.algorithms.rl.base import TrialLearner, by_step
from metarun.algorithms.rl.distributions import Distribution, distribution
from metarun.algorithms.rl.ppo import advantages, descend
from metarun.algorithms.rl.rl2 import RecurrentAgent
from metarun.algorithms.rl.trpo import TRPOStep, fisher
from metarun.algorithms.solve import Product
from metarun.models.roles import RecurrentPolicy
from metarun.tasks.episode import Spec
from metarun.tasks.rl.base import Environment
from metarun.types import Fraction, NonNegative, Positive, Rate


class RL2TRPO(TrialLearner):
    """RL2 (Duan et al. 2016, arXiv:1611.02779, section 2.3), its policy trained by TRPO.

    A meta-batch is ``rollouts`` trials of each task. One :class:`~metarun.algorithms.rl.trpo.TRPOStep` updates the
    recurrent network and the action head on the surrogate of all trials. The Fisher matrix is computed on the first
    ``fisher_share`` of them. Then ``value_epochs`` passes in ``minibatches`` minibatches fit the linear value head to
    the targets by Adam with learning rate ``value_lr``. Its gradient does not reach the recurrent network. (The authors
    fit a separate baseline.)
    """

    roles: ClassVar[tuple[str, ...]] = ("recurrent_policy",)
    model: RecurrentPolicy  # type: ignore[assignment]

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        rollouts: Positive,
        test_rollouts: Positive,
        discount: Fraction,
        gae_lambda: Fraction,
        max_kl: Rate,
        fisher_share: Fraction,
        cg_iterations: Positive,
        damping: NonNegative,
        backtracks: Positive,
        backtrack_ratio: Fraction,
        value_epochs: Positive,
        minibatches: Positive,
        value_lr: Rate,
    ) -> None:
        super().__init__(model, spec, test_rollouts)
        self.trials, self.discount, self.gae_lambda = rollouts, discount, gae_lambda
        self.fisher_share, self.value_epochs, self.minibatches = fisher_share, value_epochs, minibatches
        self.trpo = TRPOStep(max_kl, cg_iterations, damping, backtracks, backtrack_ratio)
        self.optimizer = Adam(self.model.value.parameters(), lr=value_lr)

    def agent(self, env: Environment) -> RecurrentAgent:
        return RecurrentAgent(self.model, self.repeat)

    def acting(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the policy by name: all of the model's but those of the value head."""
        named = self.get_submodule("model").named_parameters()
        return {name: p for name, p in named if not name.startswith("value.")}

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the parts of a vector [P] in the shapes and by the names of the policy's parameters."""
        acting = self.acting()
        parts = vector.split([p.numel() for p in acting.values()])
        return {name: part.view_as(p) for (name, p), part in zip(acting.items(), parts, strict=True)}

    def meta_step(self, batch: Environment, iteration: int) -> Metrics:
        self.train()
        rollout, agent = self.trial(batch, self.trials)
        advantage, target = self.repeat(advantages, rollout, agent.values, self.discount, self.gae_lambda)
        inputs, mask = torch.stack(agent.inputs), by_step(rollout.mask)
        metrics = self.improve(inputs, by_step(rollout.action), by_step(advantage), mask)
        metrics["value_error"] = self.fit_values(inputs, by_step(target), mask)
        return {"return": rollout.returns().mean(), **metrics}

    def improve(self, inputs: Tensor, action: Tensor, advantage: Tensor, mask: Tensor) -> Metrics:
        """Take the policy's step on the B trials [S, B, ...] of a meta-batch; return metrics."""
        trials = inputs, action, advantage, mask
        loss, gradient, step, old = self.repeat(self.direction, *trials)

        def evaluate(candidate: Tensor) -> tuple[Tensor, Tensor]:
            return self.repeat(self.evaluate_candidate, candidate, old, *trials)

        parameters = list(self.acting().values())
        theta = parameters_to_vector(parameters).detach()
        theta, gain, kl = self.trpo.line_search(theta, step, loss, evaluate)
        vector_to_parameters(theta, parameters)
        entropy = masked_mean(old.entropy().detach(), mask)
        return {"gain": gain, "kl": kl, "gradient_norm": gradient.norm(), "entropy": entropy}

    def direction(
        self, inputs: Tensor, action: Tensor, advantage: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Distribution]:
        """Return the loss [], its gradient [P], the natural step [P], and the policy's distributions."""
        old = distribution(self.spec, self.model(inputs)[0])
        logp = old.log_prob(action)
        loss = -masked_mean((logp - logp.detach()).exp() * advantage, mask)
        gradient = parameters_to_vector(torch.autograd.grad(loss, list(self.acting().values())))
        loss, gradient = distributed.average([loss.detach(), gradient])
        some = max(1, round(self.fisher_share * action.shape[1]))
        metric = self.metric(inputs[:, :some], mask[:, :some])
        return loss, gradient, self.trpo.natural_step(gradient, metric), old

    def evaluate_candidate(
        self, candidate: Tensor, old: Distribution, inputs: Tensor, action: Tensor, advantage: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss [] at a candidate [P] for the policy's parameters, and its divergence [] from ``old``."""
        new = distribution(self.spec, call_with(self.named(candidate), self.get_submodule("model"), inputs)[0])
        gains = (new.log_prob(action) - old.log_prob(action)).exp() * advantage
        return -masked_mean(gains, mask), masked_mean(new.kl_from(old), mask)  # type: ignore[arg-type]

    def metric(self, inputs: Tensor, mask: Tensor) -> Product:
        """Return the product ``v -> F v`` [P] with the policy's Fisher matrix, the mean over steps [S, B]."""
        # The fused kernels of attention, and those of cuDNN, cannot be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
            output = self.model(inputs)[0]
        share = (mask / mask.sum().to(output.dtype)).sqrt()
        product = fisher(distribution(self.spec, output).whitened() * share[..., None], list(self.acting().values()))
        return lambda v: parameters_to_vector(product(list(self.named(v).values())))

    def fit_values(self, inputs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Fit the value head to ``target`` [S, B]; return the mean squared error during the fit."""
        with torch.no_grad():
            features, _ = self.model.features(inputs)

        mean_error, _ = descend(
            lambda chosen: self.backward(self.value_loss, features[:, chosen], target[:, chosen], mask[:, chosen]),
            target.shape[1], self.optimizer,
            epochs=self.value_epochs, minibatches=self.minibatches, max_grad_norm=float("inf"),
        )  # fmt: skip
        return mean_error

    def value_loss(self, features: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the mean squared error [] of the values of steps [S, B] with features [S, B, width]."""
        return masked_mean((self.model.value(features)[..., 0] - target).square(), mask)

    def protocol(self) -> dict[str, Any]:
        return {"trials": self.test_rollouts, "optimizer": "TRPO"}
