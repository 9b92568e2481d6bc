"""Embeddings of symbols."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from metarun.tasks.episode import Spec
from metarun.types import Positive


class Symbols(nn.Module):
    """Learned embeddings of symbols and of the markers for begin and end: [N, L] -> [N, L, width].

    Args:
        spec: Shapes of the task.
        width: Size of an embedding.
    """

    modalities: ClassVar[tuple[str, ...]] = ("symbols",)
    role: ClassVar[str] = "features"

    def __init__(self, spec: Spec, *, width: Positive) -> None:
        super().__init__()
        self.length = spec.input_shape[0]
        self.vectors = nn.Embedding(spec.output_size + 2, width)

    def example(self) -> Tensor:
        """Return an example input, [2, L]."""
        return torch.zeros(2, self.length, dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        return self.vectors(x)
