"""Random initialisation: each task starts from its own random values instead of meta-learned ones."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from metarun.algorithms.gradient.adapts import ParameterSubset, affine
from metarun.algorithms.gradient.inner_loop import InnerLoopLearner
from metarun.algorithms.gradient.parameters import Parameters
from metarun.tasks.episode import Labelled, Spec
from metarun.types import Rate


class RandomInit(ParameterSubset):
    """A subset of the network's parameters, as in :class:`ParameterSubset`, is initialised at random on every task.

    Values are drawn from N(0, ``std``^2), or with null with replacement from the initial values of the same tensor.
    Scales and offsets of normalisation layers start at their initial values. The subset has no meta-parameters. The
    draw depends on seed and iteration only (Andrychowicz et al. 2016, arXiv:1606.04474: a new initialisation for every
    function).
    """

    def __init__(self, *, part: Literal["all", "head", "body", "norm"], norm: bool, std: Rate | None) -> None:
        super().__init__(part=part, norm=norm)
        self.std = std

    def attach(self, net: nn.Sequential, spec: Spec) -> list[str]:
        names = super().attach(net, spec)
        self.kept_names = affine(net)
        for name in names:
            net.get_parameter(name).requires_grad_(False)
        return names

    def initial(self, learner: InnerLoopLearner, support: Labelled) -> tuple[Parameters, Any]:
        tasks = len(support.y)
        return {name: self.draw(name, p, tasks) for name, p in learner.meta_learned().items()}, 0

    def draw(self, name: str, p: Tensor, tasks: int) -> Tensor:
        """Return initial values [T, ...] of the tensor ``p``."""
        if name in self.kept_names:
            return p.expand(tasks, *p.shape)
        if self.std is not None:
            return self.std * torch.randn(tasks, *p.shape, dtype=p.dtype, device=p.device)
        return p.flatten()[torch.randint(p.numel(), (tasks, *p.shape), device=p.device)]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, std={self.std}"
