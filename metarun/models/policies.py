"""Policies, which map an agent's inputs to the parameters of its action distribution.

The last dimension of a policy's output holds the parameters of
:func:`metarun.algorithms.rl.distributions.distribution`: logits of discrete actions, or mean and log standard deviation
of each continuous action dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarun.errors import require
from metarun.tasks.episode import Spec
from metarun.types import Positive, Rate


class TaskLinear(nn.Module):
    """Linear layer, ``[..., N, inputs] -> [..., N, outputs]``, whose parameters may have a leading task dimension.

    With ``functional_call`` and parameters of T tasks it maps ``[T, N, inputs]`` to ``[T, N, outputs]``. The weight is
    stored as ``[inputs, outputs]`` and initialised Xavier-uniform, the bias is zero.
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
    """3x3 convolution with stride 2 and ReLU, whose parameters may have a leading task dimension.

    Maps ``[..., N, inputs, H, W]`` to ``[..., N, outputs, ceil(H / 2), ceil(W / 2)]``. The weight is initialised
    He-normal, the bias is zero.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.kaiming_normal_(torch.empty(outputs, inputs, 3, 3)))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 5:
            # The convolutions of T tasks are one convolution with T groups of channels.
            tasks, weight, bias = len(x), self.weight.flatten(0, 1), self.bias.flatten()
            y = functional.conv2d(x.transpose(0, 1).flatten(1, 2), weight, bias, 2, 1, groups=tasks)
            return y.unflatten(1, (tasks, -1)).transpose(0, 1).relu()
        y = functional.conv2d(x.flatten(0, -4), self.weight, self.bias, 2, 1)
        return y.unflatten(0, x.shape[:-3]).relu()


class ObservationEncoder(nn.Module):
    """Encoder of observations, ``[..., N, size + more] -> [..., N, features + more]``.

    Images pass through convolutions. Vectors, and the inputs after the observation, are returned as they are.

    Args:
        spec: Shapes of the task.
        filters: Number of filters of each convolution.

    Raises:
        UserError: Observations are images and ``filters`` is empty.
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
        features = self.layers(x[..., :size].unflatten(-1, self.shape)).flatten(-3)
        return torch.cat([features, x[..., size:]], -1)


class ActionHead(nn.Module):
    """Linear head that maps features to the parameters of an action distribution.

    The standard deviation of continuous actions is learned and does not depend on the observation.

    Args:
        features: Number of features.
        spec: Shapes of the task.
        init_std: Initial standard deviation of continuous actions.
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
    """Feedforward policy, observations [..., N, size] -> action distributions [..., N, outputs].

    With ``functional_call``, parameters ``[T, ...]`` and observations ``[T, N, size]`` it runs T policies at once.

    Args:
        spec: Shapes of the task.
        filters: Number of filters of each 3x3 convolution for image observations.
        hidden: Width of each hidden layer.
        activation: Nonlinearity of the hidden layers.
        init_std: Initial standard deviation of continuous actions.
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
        self.eyes = ObservationEncoder(spec, filters)
        inputs = self.eyes.features
        for width in hidden:
            layers += [TaskLinear(inputs, width), nn.ReLU() if activation == "relu" else nn.Tanh()]
            inputs = width
        self.body = nn.Sequential(*layers)
        self.head = ActionHead(inputs, spec, init_std)

    def forward(self, observation: Tensor) -> Tensor:
        return self.head(self.body(self.eyes(observation)))


class AgentInput(nn.Module):
    """Encoding of an agent's input as one vector: observation, last action, last reward and end of the last episode.

    Discrete actions are one-hot. The action -1, which stands for no action yet, is a zero vector.

    Args:
        spec: Shapes of the task.
        transitions: If true, the previous observation is appended, so that the vector holds a whole transition.

    Raises:
        UserError: Observations are images and ``transitions`` is true.
    """

    def __init__(self, spec: Spec, transitions: bool = False) -> None:
        super().__init__()
        require(
            not (transitions and len(spec.input_shape) == 3),
            "model.transitions=true: needs vector observations, but this task's are images",
        )
        self.actions, self.discrete, self.transitions = spec.output_size, spec.discrete_actions, transitions
        size = prod(spec.input_shape)
        self.more = spec.output_size + 2 + size * transitions  # inputs after the observation
        self.size = size + self.more

    def encode_action(self, action: Tensor, dtype: torch.dtype) -> Tensor:
        """Encode actions for networks, [..., actions]. Discrete actions become one-hot."""
        if not self.discrete:
            return action
        return (action[..., None] == torch.arange(self.actions, device=action.device)).to(dtype)

    def forward(self, observation: Tensor, before: Tensor, action: Tensor, reward: Tensor, done: Tensor) -> Tensor:
        dtype = reward.dtype
        parts = [observation, self.encode_action(action, dtype), reward[..., None], done[..., None].to(dtype)]
        return torch.cat([*parts, before] if self.transitions else parts, -1)


def make_gru(inputs: int, hidden: int) -> nn.GRU:
    """Make a GRU with orthogonal weights and zero biases."""
    gru = nn.GRU(inputs, hidden)
    for name, parameter in gru.named_parameters():
        nn.init.orthogonal_(parameter) if "weight" in name else nn.init.zeros_(parameter)
    return gru


class HistoryPolicy(nn.Module):
    """The base class of policies that read the history of a trial, ``features``, and act by two linear heads.

    A subclass makes its layers between :meth:`__init__` and :meth:`make_heads`.

    Args:
        spec: Shapes of the task.
        filters: Number of filters of each 3x3 convolution for image observations.
        transitions: If true, the input of a step also holds the previous observation.

    Raises:
        UserError: Observations are images and ``transitions`` is true.
    """

    modalities: ClassVar[tuple[str, ...]] = ("vector", "state", "image", "observation")
    role: ClassVar[str] = "recurrent_policy"

    def __init__(self, spec: Spec, filters: Sequence[int], transitions: bool) -> None:
        super().__init__()
        self.encode, self.eyes = AgentInput(spec, transitions), ObservationEncoder(spec, filters)
        self.read_size = self.eyes.features + self.encode.more
        """Size of what a step is read as: features of the observation and the other inputs."""

    def make_heads(self, spec: Spec, features: int, init_std: float) -> None:
        """Make the heads for actions and values, which read ``features`` numbers."""
        self.head = ActionHead(features, spec, init_std)
        self.value = TaskLinear(features, 1)

    def features(self, inputs: Tensor, *hidden: Any) -> tuple[Tensor, Any]:
        """Return the features that both heads read, [S, B, F], and the new hidden state."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, *hidden: Any) -> tuple[Tensor, Tensor, Any]:
        """Process S steps of B trials.

        Args:
            inputs: Agent inputs, [S, B, inputs].
            hidden: The hidden state that an earlier call returned; none at the start of a trial.

        Returns:
            Action distributions [S, B, outputs], values [S, B] and the new hidden state.
        """
        features, state = self.features(inputs, *hidden)
        return self.head(features), self.value(features)[..., 0], state


class GRUPolicy(HistoryPolicy):
    """Recurrent policy of RL2, which adapts by its hidden state (Duan et al. 2016, arXiv:1611.02779, section 2.2).

    It reads the observation, the last action, the last reward and whether an episode ended. A second head estimates the
    value.

    Args:
        spec: Shapes of the task.
        filters: Number of filters of each 3x3 convolution for image observations.
        transitions: If true, it also reads the previous observation.
        hidden: Size of the hidden state.
        init_std: Initial standard deviation of continuous actions.

    Raises:
        UserError: Observations are images and ``transitions`` is true.
    """

    def __init__(
        self, spec: Spec, *, filters: Sequence[Positive], transitions: bool, hidden: Positive, init_std: Rate
    ) -> None:
        super().__init__(spec, filters, transitions)
        self.memory = make_gru(self.read_size, hidden)
        self.make_heads(spec, hidden, init_std)

    def features(self, inputs: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the features that both heads read, [S, B, hidden], and the new hidden state, [1, B, hidden]."""
        return self.memory(self.eyes(inputs), hidden)
