"""How adapted parameters move: the second of the gradient engine's four pieces."""

from __future__ import annotations

from typing import Any

from torch import nn

from metarun.algorithms.gradient.parameters import Parameters

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
