"""The network of sines: coordinates -> features of a field."""

from __future__ import annotations

from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor, nn

from metarun.tasks.episode import Spec
from metarun.types import Positive, Rate


class Siren(nn.Module):
    """Layers sin(w (W x + b)): ``depth`` of ``width`` units, at frequency ``first`` for the first and ``rest`` else.

    Sitzmann et al. 2020, arXiv:2006.09661, section 3.2: entries of the first W are uniform in +-1 / inputs, those of
    the others in +-sqrt(6 / width) / w, which keeps the distribution of activations from layer to layer.
    ``[N, inputs] -> [N, width]``.
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
