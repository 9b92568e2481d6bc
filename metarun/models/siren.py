"""SIREN, a network with sine activations for fields over coordinates (Sitzmann et al. 2020, arXiv:2006.09661)."""

from __future__ import annotations

from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor, nn

from metarun.tasks.episode import Spec
from metarun.types import Positive, Rate


class Siren(nn.Module):
    """Layers sin(w (W x + b)) with frequency w, [N, inputs] -> [N, width].

    The entries of the first W are uniform in +-1 / inputs, those of the others in +-sqrt(6 / width) / w. This keeps the
    distribution of activations the same from layer to layer (section 3.2 of the paper).

    Args:
        spec: Shapes of the task.
        width: Units of each layer.
        depth: Number of layers.
        first: Frequency of the first layer.
        rest: Frequency of the other layers.
    """

    modalities: ClassVar[tuple[str, ...]] = ("vector",)
    role: ClassVar[str] = "features"

    def __init__(self, spec: Spec, *, width: Positive, depth: Positive, first: Rate, rest: Rate) -> None:
        super().__init__()
        (inputs,) = spec.input_shape
        self.frequencies = [first, *[rest] * (depth - 1)]
        self.layers = nn.ModuleList()
        for i, frequency in enumerate(self.frequencies):
            layer = nn.Linear(width if i else inputs, width)
            bound = sqrt(6 / width) / frequency if i else 1 / inputs
            nn.init.uniform_(layer.weight, -bound, bound)
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer, frequency in zip(self.layers, self.frequencies, strict=True):
            x = torch.sin(frequency * layer(x))
        return x

    def extra_repr(self) -> str:
        return f"frequencies={self.frequencies}"
