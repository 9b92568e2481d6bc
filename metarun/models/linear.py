"""The smallest model: none. The head reads the inputs themselves, and the learner is a linear map."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from metarun.models.conv4 import as_float


class Linear(nn.Module):
    """The inputs as features, [N, ...] -> [N, all of them]; with the algorithm's head a linear map of them.

    ``bias``: whether that head has offsets.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image", "vector")
    role: ClassVar[str] = "features"

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.head_bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return as_float(x).flatten(1)
