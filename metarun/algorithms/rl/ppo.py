"""Proximal policy optimisation: advantages of trials, the clipped loss, and passes over a meta-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metarun import distributed
from metarun.algorithms.rl.advantage import gae, normalised, over_running
from metarun.algorithms.rl.collect import Rollout
from metarun.algorithms.rl.distributions import Distribution
from metarun.algorithms.schedule import Schedule
from metarun.types import NonNegative, Positive, Rate


@dataclass(frozen=True)
class Clipped:
    """The loss of PPO (Schulman et al. 2017, arXiv:1707.06347, equation 9).

    Minus the surrogate clipped at ``clip``, plus ``value_weight`` times the squared error of the value, minus
    ``entropy_weight`` times the entropy; a mean over running steps. That last weight falls to 0 in a line over the
    first ``entropy_decay_over`` iterations, if given.
    """

    clip: Rate
    value_weight: NonNegative
    entropy_weight: NonNegative
    entropy_decay_over: Positive | None = None

    def at(self, iteration: int) -> Clipped:
        """Return its value at ``iteration``, counted from 0."""
        weight = Schedule(self.entropy_weight, decay_over=self.entropy_decay_over).rate(iteration)
        return Clipped(self.clip, self.value_weight, weight)

    def loss(
        self,
        policy: Distribution,
        value: Tensor,
        action: Tensor,
        old_logp: Tensor,
        advantage: Tensor,
        target: Tensor,
        running: Tensor,
    ) -> Tensor:
        """Loss on steps [...] that took ``action`` with log-probability ``old_logp``; values fit ``target``."""
        ratio = (policy.log_prob(action) - old_logp).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        surrogate = torch.minimum(ratio * advantage, clipped * advantage)
        error = 0.5 * (value - target).square()
        each = self.value_weight * error - surrogate - self.entropy_weight * policy.entropy()
        return over_running(each, running)


def advantages(rollout: Rollout, values: Sequence[Tensor], discount: float, smoothing: float) -> tuple[Tensor, Tensor]:
    """Advantages, normalised over the steps of all tasks, and the values' targets, [T, E, S].

    ``values`` [T E] are those of each step. At steps that are not running, targets mean nothing.
    """
    value = torch.stack(list(values), -1).view_as(rollout.reward)
    advantage = gae(rollout.reward, value, rollout.mask, discount, smoothing)
    return normalised(advantage, rollout.mask, (0, 1, 2))[0], advantage + value


def descend(
    loss: Callable[[Tensor], Tensor],
    count: int,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    minibatches: int,
    max_grad_norm: float,
) -> Tensor:
    """``epochs`` passes over ``count`` items in random ``minibatches``, a step on each one's ``loss``; their mean."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    losses = []
    for _ in range(epochs):
        for chosen in torch.randperm(count, device=parameters[0].device).chunk(minibatches):
            value = loss(chosen)
            optimizer.zero_grad()
            value.backward()
            distributed.average_gradients(parameters)
            nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            optimizer.step()
            losses.append(value.detach())
    return torch.stack(losses).mean()
