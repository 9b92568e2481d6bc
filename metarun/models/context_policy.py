"""Networks of PEARL: an encoder of context to a task variable, an actor and two critics."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from math import log, prod, sqrt
from typing import ClassVar

import torch
from torch import Tensor, nn

from metarun.models.belief import layers
from metarun.tasks.episode import Spec
from metarun.types import Positive, Rate

MIN_LOG_VARIANCE = log(1e-7)
"""Minimum log-variance of a factor, as in the authors' code."""
LOG_STD = (-10.0, 2.0)
"""Bounds of the log standard deviation of actions before tanh."""


class TwinLinear(nn.Module):
    """Two linear layers in parallel, [2, N, inputs] -> [2, N, outputs], with torch's default initialisation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(2, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(2, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class ContextPolicy(nn.Module):
    """Networks of PEARL (Rakelly et al. 2019, arXiv:1903.08254, figures 1 and 2).

    The encoder maps each step of the context to a Gaussian factor. The posterior of the task variable z is the product
    of these factors, which does not depend on their order (equation 2). Variances are exponentials of the outputs. The
    authors use softplus, which hardly reaches the large variances that uninformative steps need in a context of
    hundreds. The actor maps observation and z to mean and log standard deviation of actions before tanh. Each of two
    critics maps observation, action and z to a value, and has a target network that follows it slowly.

    Args:
        spec: Shapes of the task.
        latent: Dimensions of z.
        next_observation: If true, the encoder also reads the next observation, for tasks that differ in dynamics.
        init_variance: Approximate initial variance of the factors.
        encoder: Width of each layer of the encoder.
        actor: Width of each layer of the actor.
        critics: Width of each layer of the critics.
    """

    modalities: ClassVar[tuple[str, ...]] = ("vector", "state")
    role: ClassVar[str] = "context_policy"

    def __init__(
        self,
        spec: Spec,
        *,
        latent: Positive,
        next_observation: bool,
        init_variance: Rate,
        encoder: Sequence[Positive],
        actor: Sequence[Positive],
        critics: Sequence[Positive],
    ) -> None:
        super().__init__()
        size, actions = prod(spec.input_shape), spec.output_size
        self.latent = latent
        self.reads = size + actions + 1 + size * next_observation
        factor = nn.Linear(encoder[-1], 2 * latent)
        nn.init.constant_(factor.bias[latent:], log(init_variance))
        self.encoder = nn.Sequential(layers(self.reads, encoder, nn.ReLU), factor)
        self.actor = nn.Sequential(layers(size + latent, actor, nn.ReLU), nn.Linear(actor[-1], 2 * actions))
        widths = [size + actions + latent, *critics]
        twins: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            twins += [TwinLinear(inputs, outputs), nn.ReLU()]
        self.critics = nn.Sequential(*twins, TwinLinear(widths[-1], 1))
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)

    def factors(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factor of each step as natural parameters, which add up in the product of factors.

        Args:
            context: Steps, [..., N, reads].

        Returns:
            Mean times precision, and precision, each [..., N, latent].
        """
        mean, log_variance = self.encoder(context).chunk(2, -1)
        precision = (-log_variance.clamp_min(MIN_LOG_VARIANCE)).exp()
        return mean * precision, precision

    def act(self, observation: Tensor, z: Tensor) -> Tensor:
        """Return mean and log standard deviation of actions before tanh, [..., 2 * actions]."""
        mean, log_std = self.actor(torch.cat([observation, z], -1)).chunk(2, -1)
        return torch.cat([mean, log_std.clamp(*LOG_STD)], -1)

    def values(self, observation: Tensor, action: Tensor, z: Tensor, targets: bool = False) -> Tensor:
        """Return the values of both critics, or of their target networks, [2, ...]."""
        inputs = torch.cat([observation, action, z], -1)
        critics = self.targets if targets else self.critics
        return critics(inputs.flatten(0, -2).expand(2, -1, -1)).view(2, *inputs.shape[:-1])
