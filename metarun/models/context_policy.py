"""Networks of an actor and critics that are told what a context of experience says about the task."""

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
"""Of a step's factor, as in the authors' code."""
LOG_STD = (-10.0, 2.0)
"""Of actions before they are squashed."""


class TwinLinear(nn.Module):
    """Two linear layers side by side, [2, N, inputs] -> [2, N, outputs], each initialised as torch's own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(2, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(2, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class ContextPolicy(nn.Module):
    """The networks of PEARL (Rakelly et al. 2019, arXiv:1903.08254, figures 1 and 2).

    **Encoder**: a step's observation, action and reward (and the ``next_observation``, where dynamics differ between
    tasks) through layers of ``encoder`` units to a Gaussian factor of ``latent`` dimensions; the posterior is the
    product of a context's factors, whatever their order (equation 2). Variances are exponentials and begin at about
    ``init_variance`` (the authors' softplus hardly reaches those of steps that say nothing, if there are hundreds).
    **Actor**: observation and z through layers of ``actor`` units to mean and log standard deviation of actions before
    they are squashed. **Critics**: two, of observation, action and z through layers of ``critics`` units, and their
    slowly following ``targets``.
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
        """Each step's factor as mean times precision, and precision: [..., N, latent] of ``context`` [..., N, reads].

        The product of factors is the sum of both.
        """
        mean, log_variance = self.encoder(context).chunk(2, -1)
        precision = (-log_variance.clamp_min(MIN_LOG_VARIANCE)).exp()
        return mean * precision, precision

    def act(self, observation: Tensor, z: Tensor) -> Tensor:
        """Mean and log standard deviation of actions before they are squashed, [..., 2 * actions]."""
        mean, log_std = self.actor(torch.cat([observation, z], -1)).chunk(2, -1)
        return torch.cat([mean, log_std.clamp(*LOG_STD)], -1)

    def values(self, observation: Tensor, action: Tensor, z: Tensor, targets: bool = False) -> Tensor:
        """What both critics, or their ``targets``, say: [2, ...]."""
        inputs = torch.cat([observation, action, z], -1)
        critics = self.targets if targets else self.critics
        return critics(inputs.flatten(0, -2).expand(2, -1, -1)).view(2, *inputs.shape[:-1])
