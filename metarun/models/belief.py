"""Networks of VariBAD: an encoder of experience to a belief, a decoder of rewards, and a policy on the belief."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn

from metarun.errors import require
from metarun.models.policies import ActionHead, AgentInput, TaskLinear, make_gru
from metarun.tasks.episode import Spec
from metarun.types import Positive, Rate


class BeliefPolicy(nn.Module):
    """Networks of VariBAD (Zintgraf et al. 2020, arXiv:1910.08348, figure 2 and appendix C).

    The encoder maps the agent's inputs to the mean and log-variance of the belief q(m | experience). The decoder maps m
    and a step's observation, action and next observation to the reward. Actor and critic read the observation, the mean
    and the log-variance.

    Args:
        spec: Shapes of the task. Observations must be vectors.
        latent: Dimensions of the belief m.
        embedding: Units of the layer between the agent's inputs and the GRU.
        hidden: Size of the GRU's hidden state.
        decoder: Width of each layer of the decoder.
        policy: Width of each layer of the actor and of the critic.
        init_std: Initial standard deviation of continuous actions.

    Raises:
        UserError: Observations are images.
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
            "model=belief_policy needs vectors, but this task's observations are images; use algorithm=rl2 "
            "model=gru_policy, which reads both",
        )
        size = prod(spec.input_shape)
        self.encode = AgentInput(spec)
        self.embedding = nn.Sequential(nn.Linear(self.encode.size, embedding), nn.ReLU())
        self.memory = make_gru(embedding, hidden)
        self.posterior = nn.Linear(hidden, 2 * latent)
        self.decoder = layers(latent + 2 * size + spec.output_size, decoder, nn.ReLU)
        self.reward_head = nn.Linear(decoder[-1], 1)
        self.actor = layers(size + 2 * latent, policy, nn.Tanh)
        self.head = ActionHead(policy[-1], spec, init_std)
        self.critic = layers(size + 2 * latent, policy, nn.Tanh)
        self.value_head = TaskLinear(policy[-1], 1)

    def belief(self, inputs: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and log-variance [S, B, latent] after each input [S, B, inputs], and the new hidden state."""
        features, hidden = self.memory(self.embedding(inputs), hidden)
        mean, log_variance = self.posterior(features).chunk(2, -1)
        return mean, log_variance, hidden

    def reward(self, m: Tensor, observation: Tensor, action: Tensor, after: Tensor) -> Tensor:
        """Predict the rewards [...] of steps in tasks ``m`` [..., latent]."""
        action = self.encode.encode_action(action, m.dtype)
        return self.reward_head(self.decoder(torch.cat([m, observation, action, after], -1)))[..., 0]

    def act(self, observation: Tensor, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return action distributions [..., outputs] and values [...]."""
        inputs = torch.cat([observation, mean, log_variance], -1)
        return self.head(self.actor(inputs)), self.value_head(self.critic(inputs))[..., 0]


def layers(inputs: int, widths: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Return linear layers of the given widths, each followed by the activation."""
    made: list[nn.Module] = []
    for width in widths:
        made += [nn.Linear(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*made)
