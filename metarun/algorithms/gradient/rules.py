"""How adapted parameters move: the second of the gradient engine's four pieces."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from metarun.algorithms.gradient.parameters import Parameters
from metarun.types import Fraction

State = Any
"""Tensors in nested dictionaries; empty where a rule remembers nothing."""


class Rule(nn.Module):
    """An (init, update) pair in the manner of optax, written for one task; the engine batches it over tasks.

    Whatever a rule learns is an ``nn.Parameter``, made in :meth:`prepare`, and so a meta-parameter.
    """

    carries: bool = False
    """Whether the state survives from task to task: they are then met one after another, not all at once."""

    def prepare(self, parameters: Parameters, lr: float, steps: int) -> None:
        """Called once, with what adapts, ``algorithm.inner_lr`` and ``algorithm.inner_steps``."""
        self.lr = lr

    def init(self, parameters: Parameters) -> State:
        """The state before the first step on a task."""
        return {}

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        """What is added to each parameter at ``step`` (0, 1, ...), and the new state."""
        raise NotImplementedError


class SGD(Rule):
    """Gradient descent: u = -lr g."""

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        return {name: -self.lr * g for name, g in gradients.items()}, state


class MetaSGD(Rule):
    """Meta-SGD: u = -alpha * g, a learned rate (and so direction) for every single parameter.

    Li et al. 2017, arXiv:1707.09835, equation 1. All of alpha starts at ``algorithm.inner_lr``.
    """

    def prepare(self, parameters: Parameters, lr: float, steps: int) -> None:
        self.rates = nn.ParameterList(torch.full_like(p, lr) for p in parameters.values())

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        return {name: -rate * g for rate, (name, g) in zip(self.rates, gradients.items(), strict=True)}, state


class LSLR(Rule):
    """Learned rates per layer and step: u = -alpha[k, i] g_i for tensor i at step k.

    Antoniou, Edwards & Storkey 2019 (MAML++), arXiv:1810.09502, section 4; as in the authors' code a layer's
    weight and bias each have their own. All start at ``algorithm.inner_lr``. Steps after the last of
    meta-training take its rates.
    """

    def prepare(self, parameters: Parameters, lr: float, steps: int) -> None:
        self.rates = nn.Parameter(torch.full((max(steps, 1), len(parameters)), lr))

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        rates = self.rates[min(step, len(self.rates) - 1)]
        return {name: -rates[i] * g for i, (name, g) in enumerate(gradients.items())}, state


class Momentum(Rule):
    """Heavy-ball momentum: v <- mu v + g, u = -lr v; v = 0 at the start of each task (Polyak 1964)."""

    def __init__(self, *, momentum: Fraction) -> None:
        super().__init__()
        self.momentum = momentum

    def init(self, parameters: Parameters) -> State:
        return {name: torch.zeros_like(p) for name, p in parameters.items()}

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        velocity = {name: self.momentum * state[name] + g for name, g in gradients.items()}
        return {name: -self.lr * v for name, v in velocity.items()}, velocity

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}"
