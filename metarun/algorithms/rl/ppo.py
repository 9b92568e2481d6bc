"""Proximal policy optimisation: advantages of trials, the clipped loss, and passes over a meta-batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metarun import distributed
from metarun.algorithms.outer_optimizer import Schedule
from metarun.algorithms.rl.advantage import gae, masked_mean, normalised
from metarun.algorithms.rl.collect import Rollout
from metarun.algorithms.rl.distributions import Distribution
from metarun.types import NonNegative, Positive, Rate


@dataclass(frozen=True)
class PPOLoss:
    """The loss of PPO (Schulman et al. 2017, arXiv:1707.06347, equation 9).

    Minus the surrogate clipped at ``clip``, plus ``value_weight`` times the squared error of the value, minus
    ``entropy_weight`` times the entropy, averaged over the steps of episodes. The weight of the entropy decays
    linearly to 0 over the first ``entropy_decay_over`` iterations if given.
    """

    clip: Rate
    value_weight: NonNegative
    entropy_weight: NonNegative
    entropy_decay_over: Positive | None = None

    def entropy_weight_at(self, iteration: int, like: Tensor) -> Tensor:
        """Return the weight [] of the entropy at ``iteration``, counted from 0, as a tensor of the type of ``like``."""
        return like.new_full((), Schedule(self.entropy_weight, decay_over=self.entropy_decay_over).rate(iteration))

    def loss(
        self,
        entropy_weight: Tensor,
        policy: Distribution,
        value: Tensor,
        action: Tensor,
        old_logp: Tensor,
        advantage: Tensor,
        target: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Return the loss [] on steps [...].

        Args:
            entropy_weight: Weight of the entropy, [].
            policy: Action distributions of the current policy.
            value: Current values [...].
            action: Actions taken, [...] or [..., size].
            old_logp: Log-probabilities of the actions when they were taken, [...].
            advantage: Advantages [...].
            target: Targets of the values, [...].
            mask: [...] bool, true for the steps of an episode.
        """
        ratio = (policy.log_prob(action) - old_logp).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        surrogate = torch.minimum(ratio * advantage, clipped * advantage)
        error = 0.5 * (value - target).square()
        losses = self.value_weight * error - surrogate - entropy_weight * policy.entropy()
        return masked_mean(losses, mask)


def advantages(rollout: Rollout, values: Sequence[Tensor], discount: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Compute advantages and the targets of the values.

    Args:
        rollout: Rollouts [T, E, S].
        values: S tensors [T * E], the values of each step.
        discount: Discount factor per step.
        gae_lambda: The lambda of generalised advantage estimation.

    Returns:
        Advantages, normalised over the steps of all tasks, and targets, each [T, E, S]. Targets have no meaning where
        the mask is false.
    """
    value = torch.stack(list(values), -1).view_as(rollout.reward)
    advantage = gae(rollout.reward, value, rollout.mask, discount, gae_lambda)
    return normalised(advantage, rollout.mask, (0, 1, 2))[0], advantage + value


def descend(
    backward: Callable[[Tensor], Mapping[str, Tensor]],
    count: int,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    minibatches: int,
    max_grad_norm: float,
) -> tuple[Tensor, Tensor]:
    """Take an optimizer step on each random minibatch, in several passes over the data.

    Args:
        backward: Function of the indices of a minibatch that adds the gradient of its loss to the parameters, as
            :meth:`RLAlgorithm.backward` does, and returns its scalars.
        count: Number of items.
        optimizer: Optimizer of all parameters.
        epochs: Number of passes.
        minibatches: Number of minibatches per pass.
        max_grad_norm: Norm to which gradients are clipped.

    Returns:
        Means over the steps, []: of the loss, and of the gradient's norm before it is clipped.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    losses, norms = [], []
    for _ in range(epochs):
        for chosen in torch.randperm(count, device=parameters[0].device).chunk(minibatches):
            optimizer.zero_grad()
            losses.append(backward(chosen)[""])
            distributed.average_gradients(parameters)
            norms.append(nn.utils.clip_grad_norm_(parameters, max_grad_norm))
            optimizer.step()
    return torch.stack(losses).mean(), torch.stack(norms).mean()
