"""A policy that acts on a belief about the task: an encoder of experience, a decoder of rewards, and the policy."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn

from metarun.errors import require
from metarun.models.policies import ActionHead, PerceptVector, TaskLinear, memory
from metarun.tasks.episode import Spec
from metarun.types import Positive, Rate


class BeliefPolicy(nn.Module):
    """The networks of VariBAD (Zintgraf et al. 2020, arXiv:1910.08348, figure 2 and appendix C).

    **Encoder**: each percept through ``embedding`` units to a GRU of ``hidden``, and from that the mean and
    log-variance of q(m | what was experienced), ``latent`` dimensions. **Decoder**: m, a step's observation, action
    and next observation through layers of ``decoder`` units to the reward. **Policy**: observation, mean and
    log-variance through layers of ``policy`` units to the action distribution, and through others to the value.
    """

    modalities: ClassVar[tuple[str, ...]] = ("vector", "state", "observation")
    role: ClassVar[str] = "belief_policy"

    def __init__(
        self,
        spec: Spec,
        *,
        latent: Positive,
        embedding: Positive,
        hidden: Positive,
        decoder: Sequence[Positive],
        policy: Sequence[Positive],
        init_std: Rate,
    ) -> None:
        super().__init__()
        require(
            len(spec.input_shape) == 1,
            "model=belief_policy reads vectors, and this task's observations are images; use algorithm=rl2 "
            "model=gru_policy, which reads both",
        )
        size = prod(spec.input_shape)
        self.encode = PerceptVector(spec)
        self.embedding = nn.Sequential(nn.Linear(self.encode.size, embedding), nn.ReLU())
        self.memory = memory(embedding, hidden)
        self.posterior = nn.Linear(hidden, 2 * latent)
        self.decoder = layers(latent + 2 * size + spec.output_size, decoder, nn.ReLU)
        self.reward_head = nn.Linear(decoder[-1], 1)
        self.actor = layers(size + 2 * latent, policy, nn.Tanh)
        self.head = ActionHead(policy[-1], spec, init_std)
        self.critic = layers(size + 2 * latent, policy, nn.Tanh)
        self.value_head = TaskLinear(policy[-1], 1)

    def belief(self, inputs: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log-variance [S, B, latent] after each of S percepts [S, B, inputs], and the hidden state."""
        features, hidden = self.memory(self.embedding(inputs), hidden)
        mean, log_variance = self.posterior(features).chunk(2, -1)
        return mean, log_variance, hidden

    def reward(self, m: Tensor, observation: Tensor, action: Tensor, after: Tensor) -> Tensor:
        """What steps pay in tasks ``m`` [..., latent]: [...]."""
        action = self.encode.acted(action, m.dtype)
        return self.reward_head(self.decoder(torch.cat([m, observation, action, after], -1)))[..., 0]

    def act(self, observation: Tensor, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        """Action distributions [..., outputs] and values [...]."""
        seen = torch.cat([observation, mean, log_variance], -1)
        return self.head(self.actor(seen)), self.value_head(self.critic(seen))[..., 0]


def layers(inputs: int, widths: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers, each followed by the activation."""
    made: list[nn.Module] = []
    for width in widths:
        made += [nn.Linear(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*made)
