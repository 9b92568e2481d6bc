"""A training problem: a network's initial parameters, its data, and the loss that an optimizer minimises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class Problem:
    """Training of a network on minibatches. It consists of tensors and plain values, which a checkpoint can hold.

    A parameter ``<i>.weight`` of four dimensions is a convolution of stride 2, any other a linear layer. The activation
    follows every layer but the last.

    Attributes:
        initial: Initial parameters by name, in the order of the layers.
        x: Inputs [N, ...].
        y: Class indices [N], or targets [N, D].
        batch: Examples of a minibatch, a divisor of N. Minibatches follow each other in the order of the examples.
        activation: A name in :data:`ACTIVATIONS`.
        unit: The loss that counts as 1: that of constant predictions.
    """

    initial: dict[str, Tensor]
    x: Tensor
    y: Tensor
    batch: int
    activation: str
    unit: float

    def minibatch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of a step, from 0."""
        first = step * self.batch % len(self.y)
        return self.x[first : first + self.batch], self.y[first : first + self.batch]

    def loss(self, parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Return the loss [] on examples, cross-entropy or squared error, in units of that of constant predictions."""
        layers, activation = len(parameters), ACTIVATIONS[self.activation]
        for i in range(layers):
            weight = parameters.get(f"{i}.weight")
            if weight is None:
                break
            if i > 0:
                x = activation(x)
            bias = parameters.get(f"{i}.bias")
            conv = weight.dim() == 4
            x = F.conv2d(x, weight, bias, stride=2, padding=1) if conv else F.linear(x.flatten(1), weight, bias)
        raw = (x - y).square().mean() if y.is_floating_point() else F.cross_entropy(x, y)
        return raw / self.unit


def unit_of(y: Tensor, outputs: int) -> float:
    """Return the loss of constant predictions: zeros for targets, equal probabilities for classes."""
    return float(y.square().mean()) if y.is_floating_point() else log(outputs)
