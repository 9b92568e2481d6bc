"""Inner losses: the loss of the task, without or with a proximal term (iMAML)."""

from __future__ import annotations

import torch
from torch import Tensor

from metarun.algorithms.gradient.parameters import Parameters
from metarun.algorithms.gradient.pieces import TaskLoss as TaskLoss
from metarun.types import NonNegative


class Proximal(TaskLoss):
    """The loss of the task plus ``strength`` / 2 times the squared distance from the initial parameters (iMAML)."""

    def __init__(self, *, strength: NonNegative) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, prediction: Tensor, x: Tensor, y: Tensor, parameters: Parameters, initial: Parameters) -> Tensor:
        moved = torch.stack([(p - initial[name]).square().sum() for name, p in parameters.items()]).sum()
        return super().forward(prediction, x, y, parameters, initial) + self.strength / 2 * moved

    def extra_repr(self) -> str:
        return f"strength={self.strength}"
