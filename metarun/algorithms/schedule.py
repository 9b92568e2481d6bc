"""The outer step size as a function of the iteration."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

import torch

from metarun.types import Decay


@dataclass(frozen=True)
class Schedule:
    """``lr``, halved every ``halve_every`` iterations, and brought to 0 over ``decay_over``: null for neither.

    At iteration i of the N that it decays over, ``linear`` takes the fraction 1 - i / N of the rate, and ``cosine``
    (1 + cos(pi i / N)) / 2 (Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5, without restarts).
    """

    lr: float
    halve_every: int | None = None
    decay_over: int | None = None
    decay: Decay = "linear"

    def rate(self, iteration: int) -> float:
        """The step size at ``iteration``."""
        halved = self.lr * (0.5 ** (iteration // self.halve_every) if self.halve_every else 1.0)
        if not self.decay_over:
            return halved
        done = min(1.0, iteration / self.decay_over)
        return halved * (1 - done if self.decay == "linear" else (1 + cos(pi * done)) / 2)

    def apply(self, optimizer: torch.optim.Optimizer, iteration: int) -> None:
        """Let ``optimizer`` step by it."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(iteration)
