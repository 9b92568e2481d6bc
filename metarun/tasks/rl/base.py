"""Control: T tasks of one family, each simulated in E parallel copies by tensor code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from metarun.tasks import rng
from metarun.types import Split


class Environment(ABC):
    """T tasks x E copies, all tensors ``[T, E, ...]`` on one device: a ``batch`` of a control family.

    The dynamics are functions of an explicit state, so nothing is reset unasked and the object holds no
    random state. An episode ends when :meth:`step` says ``terminated``, or after ``horizon`` steps, which is
    truncation and is the caller's to count; a trial is ``episodes`` consecutive episodes of one task.
    """

    horizon: int
    episodes: int
    tasks: int
    """T."""
    device: torch.device

    def __init__(self, seed: int, split: Split, indices: Sequence[int], horizon: int, episodes: int) -> None:
        self.tasks, self.horizon, self.episodes = len(indices), horizon, episodes
        self._source = (seed, split, indices)

    def generator(self) -> torch.Generator | None:
        """Fresh noise for these tasks, the same at every call: by (seed, split, first index).

        Drawn from by :func:`~metarun.tasks.rng.drawn`, it is each task's own, whichever others are computed here.
        """
        return rng.generator(self.device, *self._source)

    @abstractmethod
    def reset(self, copies: int, generator: torch.Generator | None) -> Tensor:
        """The state [T, E, ...] in which episodes begin."""

    @abstractmethod
    def observe(self, state: Tensor) -> Tensor:
        """Observations [T, E, observation size] of a state."""

    @abstractmethod
    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """(next state, reward [T, E], terminated [T, E]) of actions [T, E] (discrete) or [T, E, size]."""

    def shaped(self, state: Tensor, reward: Tensor) -> Tensor:
        """The ``reward`` of a step that led to ``state``, as it may be learned from in meta-training, [T, E].

        A family whose own reward is too rare to learn from gives a denser one here, that no learner sees at test.
        """
        return reward

    def truncated(self) -> Tensor | None:
        """Copies [T, E] whose episode the last step cut off before the horizon; ``None``: none of them."""
        return None

    def outcome(self) -> dict[str, Tensor]:
        """What else became of the last episode of each copy, [T, E], by name: ``success``, where that is told."""
        return {}


class Wrapper(Environment):
    """The same environment as ``env``, for a subclass that changes or records a part of it."""

    def __init__(self, env: Environment) -> None:
        self.env = env
        self.horizon, self.episodes, self.tasks, self.device = env.horizon, env.episodes, env.tasks, env.device

    def generator(self) -> torch.Generator | None:
        return self.env.generator()

    def reset(self, copies: int, generator: torch.Generator | None) -> Tensor:
        return self.env.reset(copies, generator)

    def observe(self, state: Tensor) -> Tensor:
        return self.env.observe(state)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        return self.env.step(state, action, generator)

    def shaped(self, state: Tensor, reward: Tensor) -> Tensor:
        return self.env.shaped(state, reward)

    def truncated(self) -> Tensor | None:
        return self.env.truncated()

    def outcome(self) -> dict[str, Tensor]:
        return self.env.outcome()
