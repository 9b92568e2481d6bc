"""Random initialisation: each task starts from random values of its own, not from meta-learned ones."""

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
    """A part of the network, as in :class:`ParameterSubset`, that starts anew on every task, as an optimisee does.

    Its entries are drawn from N(0, ``std``^2) (null: with replacement from the values that the network's own
    initialiser gave that tensor, whatever its distribution). Factors and offsets of normalisation start as they are.
    Nothing of the part is a meta-parameter. The draw is a function of seed and iteration, as all of a step's
    randomness is (Andrychowicz et al. 2016, arXiv:1606.04474: a new starting point for every function).
    """

    def __init__(self, *, part: Literal["all", "head", "body", "norm"], norm: bool, std: Rate | None) -> None:
        super().__init__(part=part, norm=norm)
        self.std = std

    def attach(self, net: nn.Sequential, spec: Spec) -> list[str]:
        names = super().attach(net, spec)
        self.as_they_are = affine(net)
        for name in names:
            net.get_parameter(name).requires_grad_(False)
        return names

    def initial(self, learner: InnerLoopLearner, support: Labelled) -> tuple[Parameters, Any]:
        tasks = len(support.y)
        return {name: self.draw(name, p, tasks) for name, p in learner.meta_learned().items()}, 0

    def draw(self, name: str, p: Tensor, tasks: int) -> Tensor:
        """Starting values [tasks, ...] of the tensor ``p``."""
        if name in self.as_they_are:
            return p.expand(tasks, *p.shape)
        if self.std is not None:
            return self.std * torch.randn(tasks, *p.shape, dtype=p.dtype, device=p.device)
        return p.flatten()[torch.randint(p.numel(), (tasks, *p.shape), device=p.device)]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, std={self.std}"
