"""Policies: from what an agent perceives to the parameters of its action distribution.

The last dimension of a policy's output is read by :func:`metarun.algorithms.rl.distributions.distribution`:
logits of discrete actions, or mean and log standard deviation of each continuous action dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, prod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from metarun.tasks.base import Spec
from metarun.types import Positive, Rate


class TaskLinear(nn.Module):
    """A linear layer that also runs with a leading task dimension on its parameters (``functional_call``).

    ``[..., N, inputs] -> [..., N, outputs]``; Xavier-uniform weight, kept as ``[inputs, outputs]``, zero
    bias.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(inputs, outputs)))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 3:
            return torch.baddbmm(self.bias[:, None], x, self.weight)
        return x @ self.weight + self.bias


class ActionHead(nn.Module):
    """Features -> the parameters of an action distribution; ``init_std`` is that of continuous actions.

    Their standard deviation is learned but does not depend on the observation.
    """

    def __init__(self, features: int, spec: Spec, init_std: float) -> None:
        super().__init__()
        self.linear = TaskLinear(features, spec.output_size)
        if not spec.discrete_actions:
            self.log_std = nn.Parameter(torch.full((spec.output_size,), log(init_std)))
        self.discrete = spec.discrete_actions

    def forward(self, features: Tensor) -> Tensor:
        output = self.linear(features)
        if self.discrete:
            return output
        return torch.cat([output, self.log_std.unsqueeze(-2).expand_as(output)], -1)


class MLPPolicy(nn.Module):
    """A memoryless policy: observations [..., N, size] -> action distributions [..., N, outputs].

    Run by ``functional_call`` with parameters ``[T, ...]`` and observations ``[T, N, size]`` it is T
    policies.
    """

    modalities: ClassVar[tuple[str, ...]] = ("vector", "state")
    role: ClassVar[str] = "policy"

    def __init__(
        self, spec: Spec, *, hidden: Sequence[Positive], activation: Literal["relu", "tanh"], init_std: Rate
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = prod(spec.input_shape)
        for width in hidden:
            layers += [TaskLinear(inputs, width), nn.ReLU() if activation == "relu" else nn.Tanh()]
            inputs = width
        self.body = nn.Sequential(*layers)
        self.head = ActionHead(inputs, spec, init_std)

    def forward(self, observation: Tensor) -> Tensor:
        return self.head(self.body(observation))


class PerceptVector(nn.Module):
    """What an agent perceives as one vector: observation, last action, last reward, and whether an episode ended.

    Discrete actions enter as one-hot vectors; -1, no action yet, as zeros.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.actions, self.discrete = spec.output_size, spec.discrete_actions
        self.size = prod(spec.input_shape) + spec.output_size + 2

    def forward(self, observation: Tensor, action: Tensor, reward: Tensor, done: Tensor) -> Tensor:
        if self.discrete:
            action = (action[..., None] == torch.arange(self.actions, device=action.device)).to(reward.dtype)
        return torch.cat([observation, action, reward[..., None], done[..., None].to(reward.dtype)], -1)


def memory(inputs: int, hidden: int) -> nn.GRU:
    """A GRU with orthogonal weights and no offsets at first."""
    gru = nn.GRU(inputs, hidden)
    for name, parameter in gru.named_parameters():
        nn.init.orthogonal_(parameter) if "weight" in name else nn.init.zeros_(parameter)
    return gru


class GRUPolicy(nn.Module):
    """A policy with a memory; it reads observation, last action, last reward and whether an episode ended.

    Adapting is what its hidden state does (Duan et al. 2016, section 2.2). A second head estimates the value.
    """

    modalities: ClassVar[tuple[str, ...]] = ("vector", "state")
    role: ClassVar[str] = "recurrent_policy"

    def __init__(self, spec: Spec, *, hidden: Positive, init_std: Rate) -> None:
        super().__init__()
        self.encode = PerceptVector(spec)
        self.memory = memory(self.encode.size, hidden)
        self.head = ActionHead(hidden, spec, init_std)
        self.value = TaskLinear(hidden, 1)

    def forward(self, inputs: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """S steps of B trials, [S, B, inputs], from ``hidden`` [1, B, hidden] (``None``: a trial begins).

        Returns action distributions [S, B, outputs], values [S, B] and the new hidden state.
        """
        features, hidden = self.features(inputs, hidden)
        return self.head(features), self.value(features)[..., 0], hidden

    def features(self, inputs: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What both heads read, [S, B, hidden], and the new hidden state."""
        return self.memory(inputs, hidden)
