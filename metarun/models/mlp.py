"""Multilayer perceptron for vectors, observations and flattened images."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from metarun.models.norm import BatchNorm
from metarun.tasks.episode import Spec
from metarun.types import Positive


class MLP(nn.Module):
    """Multilayer perceptron without an output layer, [N, ...] -> [N, hidden[-1]]. The algorithm adds the head.

    Args:
        spec: Shapes of the task.
        hidden: Width of each hidden layer.
        activation: Nonlinearity after each layer.
        batch_norm: If true, batch norm follows each linear layer.
        norm_scale: If true, batch norm has a learned scale. MAML's networks have none.
        init: ``torch`` for torch's default, or ``finn`` for weights from a normal distribution with standard deviation
            0.01, truncated at two standard deviations, and zero biases (Finn et al. 2017, the authors' code).
    """

    modalities: ClassVar[tuple[str, ...]] = ("image", "vector")
    role: ClassVar[str] = "features"

    def __init__(
        self,
        spec: Spec,
        *,
        hidden: Sequence[Positive],
        activation: Literal["relu", "tanh", "sigmoid"],
        batch_norm: bool,
        norm_scale: bool,
        init: Literal["torch", "finn"],
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = prod(spec.input_shape)
        for width in hidden:
            linear = nn.Linear(inputs, width)
            if init == "finn":
                finn_init(linear)
            layers += [linear, *([BatchNorm(width, scale=norm_scale)] if batch_norm else [])]
            layers.append({"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}[activation]())
            inputs = width
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(as_float(x).flatten(1))


def finn_init(layer: nn.Linear, std: float = 0.01) -> None:
    """Initialise a layer with truncated normal weights and zero biases, in place."""
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)


def as_float(x: Tensor) -> Tensor:
    """Convert uint8 images in 0..255 to floats in 0..1. Other tensors are returned as they are."""
    return x.to(torch.get_default_dtype()) / 255 if x.dtype == torch.uint8 else x
