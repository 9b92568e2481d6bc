"""Soft actor-critic: squashed actions, the losses of critics, actor and temperature, and targets that follow.

Haarnoja et al. 2018, arXiv:1812.05905, section 5; tensors may have any leading dimensions, the critics' two first.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algorithms.rl.distributions import Gaussian


def squashed(output: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions tanh(u) [..., actions], u Gaussian, and their log-density [...] by the change of variables (appendix C).

    ``output`` [..., 2 * actions] is u's mean and log standard deviation, ``noise`` standard normal.
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
    """Targets of the critics (equations 3 and 5): the lesser critic's value of the next step, plus entropy.

    No value follows a step that ``terminated``; truncation does not end the sum.
    """
    after = next_values.amin(0) - temperature * next_logp
    return reward + discount * (1 - terminated) * after


def critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """The mean squared error of each critic, summed (equation 5, without its factor 1/2)."""
    return (values - target).square().flatten(1).mean(1).sum()


def actor_loss(values: Tensor, logp: Tensor, temperature: Tensor | float) -> Tensor:
    """Equation 7: of actions drawn by the actor, which ``values`` and ``logp`` depend on."""
    return (temperature * logp - values.amin(0)).mean()


def temperature_loss(log_temperature: Tensor, logp: Tensor, entropy: float) -> Tensor:
    """Equation 18, by the logarithm, as in the authors' code: raises the temperature while entropy is below."""
    return -log_temperature * (logp.detach().mean() + entropy)


@torch.no_grad()
def follow(targets: Iterable[Tensor], sources: Iterable[Tensor], rate: float) -> None:
    """Move ``targets`` by ``rate`` of the way to ``sources``."""
    torch._foreach_lerp_(list(targets), list(sources), rate)
