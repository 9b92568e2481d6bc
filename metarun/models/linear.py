"""The identity as a model, so that the algorithm's head on top of it is a linear map of the inputs."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from metarun.models.mlp import as_float


class Linear(nn.Module):
    """Flattens the inputs to features, [N, ...] -> [N, features].

    Args:
        bias: If true, the algorithm's head has a bias.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image", "vector")
    role: ClassVar[str] = "features"

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.head_bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return as_float(x).flatten(1)
