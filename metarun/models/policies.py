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
from torch.nn import functional

from metarun.errors import require
from metarun.tasks.episode import Spec
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


class TaskConv(nn.Module):
    """A 3x3 convolution that halves an image's sides, then ReLU; it too runs with a leading task dimension.

    ``[..., N, inputs, H, W] -> [..., N, outputs, ceil(H / 2), ceil(W / 2)]``; He-normal weight, zero bias.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.kaiming_normal_(torch.empty(outputs, inputs, 3, 3)))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 5:
            # The convolutions of T tasks are one whose channels fall into T groups.
            tasks, weight, bias = len(x), self.weight.flatten(0, 1), self.bias.flatten()
            y = functional.conv2d(x.transpose(0, 1).flatten(1, 2), weight, bias, 2, 1, groups=tasks)
            return y.unflatten(1, (tasks, -1)).transpose(0, 1).relu()
        y = functional.conv2d(x.flatten(0, -4), self.weight, self.bias, 2, 1)
        return y.unflatten(0, x.shape[:-3]).relu()


class Eyes(nn.Module):
    """What every policy reads observations with: ``[..., N, size + more] -> [..., N, features + more]``.

    Images pass convolutions of ``filters`` each; vectors, and what comes after the observation, stay as they are.
    """

    def __init__(self, spec: Spec, filters: Sequence[int]) -> None:
        super().__init__()
        self.shape, self.image = spec.input_shape, len(spec.input_shape) == 3
        self.features = prod(self.shape)
        layers: list[nn.Module] = []
        if self.image:
            require(bool(filters), "model.filters=[]: this task's observations are images; give at least one layer")
            channels, height, width = self.shape
            for outputs in filters:
                layers.append(TaskConv(channels, outputs))
                channels, height, width = outputs, -(-height // 2), -(-width // 2)
            self.features = channels * height * width
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if not self.image:
            return x
        size = prod(self.shape)
        seen = self.layers(x[..., :size].unflatten(-1, self.shape)).flatten(-3)
        return torch.cat([seen, x[..., size:]], -1)


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
    policies. Images are read by convolutions of ``filters`` each.
    """

    modalities: ClassVar[tuple[str, ...]] = ("vector", "state", "image", "observation")
    role: ClassVar[str] = "policy"

    def __init__(
        self,
        spec: Spec,
        *,
        filters: Sequence[Positive],
        hidden: Sequence[Positive],
        activation: Literal["relu", "tanh"],
        init_std: Rate,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.eyes = Eyes(spec, filters)
        inputs = self.eyes.features
        for width in hidden:
            layers += [TaskLinear(inputs, width), nn.ReLU() if activation == "relu" else nn.Tanh()]
            inputs = width
        self.body = nn.Sequential(*layers)
        self.head = ActionHead(inputs, spec, init_std)

    def forward(self, observation: Tensor) -> Tensor:
        return self.head(self.body(self.eyes(observation)))


class PerceptVector(nn.Module):
    """What an agent perceives as one vector: observation, last action, last reward, and whether an episode ended.

    Discrete actions enter as one-hot vectors; -1, no action yet, as zeros. With ``transitions`` the observation acted
    on comes last, and a percept tells by itself what was done where, and what came of it.
    """

    def __init__(self, spec: Spec, transitions: bool = False) -> None:
        super().__init__()
        require(
            not (transitions and len(spec.input_shape) == 3),
            "model.transitions=true: this task's observations are images; only vectors are seen twice",
        )
        self.actions, self.discrete, self.transitions = spec.output_size, spec.discrete_actions, transitions
        size = prod(spec.input_shape)
        self.more = spec.output_size + 2 + size * transitions  # than the observation
        self.size = size + self.more

    def acted(self, action: Tensor, dtype: torch.dtype) -> Tensor:
        """Actions as networks read them, [..., actions]."""
        if not self.discrete:
            return action
        return (action[..., None] == torch.arange(self.actions, device=action.device)).to(dtype)

    def forward(self, observation: Tensor, before: Tensor, action: Tensor, reward: Tensor, done: Tensor) -> Tensor:
        dtype = reward.dtype
        seen = [observation, self.acted(action, dtype), reward[..., None], done[..., None].to(dtype)]
        return torch.cat([*seen, before] if self.transitions else seen, -1)


def memory(inputs: int, hidden: int) -> nn.GRU:
    """A GRU with orthogonal weights and no offsets at first."""
    gru = nn.GRU(inputs, hidden)
    for name, parameter in gru.named_parameters():
        nn.init.orthogonal_(parameter) if "weight" in name else nn.init.zeros_(parameter)
    return gru


class GRUPolicy(nn.Module):
    """A policy with a memory; it reads observation, last action, last reward and whether an episode ended.

    Adapting is what its hidden state does (Duan et al. 2016, section 2.2). A second head estimates the value. Images
    are read by convolutions of ``filters`` each. With ``transitions`` it also reads the observation it acted on before.
    """

    modalities: ClassVar[tuple[str, ...]] = ("vector", "state", "image", "observation")
    role: ClassVar[str] = "recurrent_policy"

    def __init__(
        self, spec: Spec, *, filters: Sequence[Positive], transitions: bool, hidden: Positive, init_std: Rate
    ) -> None:
        super().__init__()
        self.encode, self.eyes = PerceptVector(spec, transitions), Eyes(spec, filters)
        self.memory = memory(self.eyes.features + self.encode.more, hidden)
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
        return self.memory(self.eyes(inputs), hidden)
