"""Proximal policy optimisation: the loss of a batch of steps, clipped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.algorithms.rl.distributions import Distribution
from metarun.types import NonNegative, Rate


@dataclass(frozen=True)
class Clipped:
    """The loss of PPO (Schulman et al. 2017, arXiv:1707.06347, equation 9).

    Minus the surrogate clipped at ``clip``, plus ``value_weight`` times the squared error of the value, minus
    ``entropy_weight`` times the entropy; a mean over running steps.
    """

    clip: Rate
    value_weight: NonNegative
    entropy_weight: NonNegative

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
        """Of steps [...] that took ``action`` with log-probability ``old_logp``; ``target`` is what values aim at."""
        ratio = (policy.log_prob(action) - old_logp).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        surrogate = torch.minimum(ratio * advantage, clipped * advantage)
        error = 0.5 * (value - target).square()
        each = self.value_weight * error - surrogate - self.entropy_weight * policy.entropy()
        return (each * running).sum() / running.sum()
