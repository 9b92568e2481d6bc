"""Distributions over actions in plain tensor code: torch's own read their arguments back to check them."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi

import torch
from torch import Tensor

from metarun.tasks.episode import Spec
from metarun.tasks.rng import drawn

MIN_LOG_STD = log(1e-6)


@dataclass(frozen=True)
class Categorical:
    """Discrete actions [...] with normalised ``logp`` [..., actions]."""

    logp: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """The Gumbel-max trick, ``noise`` [..., actions] being minus the logarithm of unit exponentials."""
        return (self.logp + noise).argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.logp.gather(-1, action[..., None])[..., 0]

    def entropy(self) -> Tensor:
        return -(self.logp.exp() * self.logp).sum(-1)

    def whitened(self) -> Tensor:
        """Coordinates [..., actions] in which the Fisher metric is the identity, here."""
        return (0.5 * self.logp.detach()).exp() * self.logp

    def kl_from(self, old: Categorical) -> Tensor:
        """KL(old || self), [...]."""
        return (old.logp.exp() * (old.logp - self.logp)).sum(-1)


@dataclass(frozen=True)
class Gaussian:
    """Continuous actions [..., size] with independent dimensions."""

    mean: Tensor
    log_std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """``noise`` [..., size] is standard normal."""
        return self.mean + self.log_std.exp() * noise

    def log_prob(self, action: Tensor) -> Tensor:
        z = (action - self.mean) * (-self.log_std).exp()
        return (-0.5 * z.square() - self.log_std - 0.5 * log(2 * pi)).sum(-1)

    def entropy(self) -> Tensor:
        return (self.log_std + 0.5 * log(2 * pi) + 0.5).sum(-1)

    def whitened(self) -> Tensor:
        """Coordinates [..., 2 * size] in which the Fisher metric is the identity, here."""
        return torch.cat([(-self.log_std.detach()).exp() * self.mean, 2**0.5 * self.log_std], -1)

    def kl_from(self, old: Gaussian) -> Tensor:
        """KL(old || self), [...]."""
        spread = (2 * (old.log_std - self.log_std)).exp()
        shift = ((old.mean - self.mean) * (-self.log_std).exp()).square()
        return (0.5 * (spread + shift - 1) + self.log_std - old.log_std).sum(-1)


Distribution = Categorical | Gaussian


def distribution(spec: Spec, output: Tensor) -> Distribution:
    """Return the distribution over actions that a policy's output [..., outputs] parametrises."""
    if spec.discrete_actions:
        return Categorical(output.log_softmax(-1))
    mean, log_std = output.chunk(2, -1)
    return Gaussian(mean, log_std.clamp_min(MIN_LOG_STD))


def sampling_noise(
    spec: Spec, shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Noise [*shape, actions] for ``sample``; ``shape`` is (steps, T, E)."""
    noise = torch.empty(*shape, spec.output_size, device=device)
    if spec.discrete_actions:
        return drawn(noise, "exponential_", generator=generator, tasks=1).log_().neg_()
    return drawn(noise, "normal_", generator=generator, tasks=1)
