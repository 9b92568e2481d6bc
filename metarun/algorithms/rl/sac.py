"""Soft actor-critic: squashed actions, the losses of critics, actor and temperature, and target networks.

Haarnoja et al. 2018, arXiv:1812.05905, section 5. Tensors may have any leading dimensions. Those of the critics begin
with a dimension of size 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algorithms.rl.distributions import Gaussian


def squashed(output: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return actions tanh(u) [..., actions] for Gaussian u, and their log-density [...] (appendix C).

    Args:
        output: Mean and log standard deviation of u, [..., 2 * actions].
        noise: Standard normal noise [..., actions].
    """
    gaussian = Gaussian(*output.chunk(2, -1))
    u = gaussian.sample(noise)
    # log(1 - tanh(u)^2) without the difference, which is 0 in float32 for |u| > 9.
    slope = 2 * (log(2) - u - F.softplus(-2 * u))
    return u.tanh(), gaussian.log_prob(u) - slope.sum(-1)


def soft_target(
    reward: Tensor,
    terminated: Tensor,
    next_values: Tensor,
    next_logp: Tensor,
    temperature: Tensor | float,
    discount: float,
) -> Tensor:
    """Return the targets of the critics (equations 3 and 5), from the smaller critic's value of the next step.

    The value after a step that ``terminated`` is 0. After a truncated step it is bootstrapped.
    """
    after = next_values.amin(0) - temperature * next_logp
    return reward + discount * (1 - terminated) * after


def critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """Return the sum over critics of their mean squared error (equation 5, without its factor 1/2)."""
    return (values - target).square().flatten(1).mean(1).sum()


def actor_loss(values: Tensor, logp: Tensor, temperature: Tensor | float) -> Tensor:
    """Return the actor's loss (equation 7). ``values`` and ``logp`` are those of actions that it sampled."""
    return (temperature * logp - values.amin(0)).mean()


def temperature_loss(log_temperature: Tensor, logp: Tensor, entropy: float) -> Tensor:
    """Return the loss of the log-temperature (equation 18), which rises while the entropy is below ``entropy``."""
    return -log_temperature * (logp.detach().mean() + entropy)


@torch.no_grad()
def follow(targets: Iterable[Tensor], sources: Iterable[Tensor], rate: float) -> None:
    """Move ``targets`` by ``rate`` of the way to ``sources``."""
    torch._foreach_lerp_(list(targets), list(sources), rate)
