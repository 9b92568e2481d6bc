"""The base class of batched environments: T tasks of one family, each simulated in E parallel environments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from metarun.tasks import rng
from metarun.types import Split


class Environment(ABC):
    """T tasks x E parallel environments; all tensors are ``[T, E, ...]`` on one device. RL families return it as a
    batch.

    The dynamics are functions of an explicit state: the object holds no random state and never resets by itself. An
    episode ends when :meth:`step` returns ``terminated``, or is truncated by the caller after ``horizon`` steps. A
    trial is ``episodes`` consecutive episodes of one task.

    A subclass calls ``super().__init__``, sets :attr:`device`, and implements :meth:`reset`, :meth:`observe` and
    :meth:`step`.

    Attributes:
        horizon: Largest number of steps of an episode.
        episodes: Number of episodes of a trial.
        tasks: Number of tasks, T.
        device: Device of all tensors.
    """

    is_deterministic: ClassVar[bool] = False
    """True if :meth:`observe` and :meth:`step` draw nothing, change nothing, and compute on tensors alone.

    They are then functions of their arguments and of what the environment holds, which a run on a GPU records. Not
    inherited: what a subclass adds may draw.
    """
    horizon: int
    episodes: int
    tasks: int
    device: torch.device

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.is_deterministic = vars(cls).get("is_deterministic", False)

    def __init__(self, seed: int, split: Split, indices: Sequence[int], horizon: int, episodes: int) -> None:
        """Build the environment.

        Args:
            seed: Seed of the family.
            split: Split of the tasks.
            indices: Numbers of the tasks.
            horizon: Largest number of steps of an episode.
            episodes: Number of episodes of a trial.
        """
        self.tasks, self.horizon, self.episodes = len(indices), horizon, episodes
        self._source = (seed, split, indices)

    def generator(self) -> torch.Generator | None:
        """Return a new generator for these tasks, in the same state at every call.

        It depends on (seed, split, first index). Numbers drawn by :func:`~metarun.tasks.rng.drawn` are the same for a
        task no matter which other tasks this process computes.
        """
        return rng.generator(self.device, *self._source)

    @abstractmethod
    def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
        """Return the state [T, E, ...] at the start of an episode.

        Args:
            num_envs: Number of parallel environments of each task, E.
            generator: Source of random numbers; ``None`` on the ``meta`` device.
        """

    @abstractmethod
    def observe(self, state: Tensor) -> Tensor:
        """Return observations [T, E, size].

        Args:
            state: State [T, E, ...].
        """

    @abstractmethod
    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Advance by one step.

        Args:
            state: State [T, E, ...].
            action: Actions, [T, E] if discrete, else [T, E, size].
            generator: Source of random numbers; ``None`` on the ``meta`` device.

        Returns:
            The next state [T, E, ...], the reward [T, E], and ``terminated`` [T, E] as bool.
        """

    def shaped(self, state: Tensor, reward: Tensor) -> Tensor:
        """Return the reward [T, E] to learn from in meta-training.

        A family whose own reward is too sparse returns a dense one here. Learners never see it at test time.

        Args:
            state: State [T, E, ...] after the step.
            reward: Reward [T, E] of the step.
        """
        return reward

    def truncated(self) -> Tensor | None:
        """Return the environments [T, E] whose episode the last step truncated before the horizon; ``None`` if there
        are none.
        """
        return None

    def optimal_actions(self, state: Tensor, time: int) -> Tensor:
        """Return which actions are optimal for an agent that knows the task, [T, E, A] bool; at least one is.

        Environments whose ``spec.has_expert`` is true implement it. Algorithms call it in meta-training only.

        Args:
            state: State [T, E, ...].
            time: Number of the step in its episode, from 0.
        """
        raise NotImplementedError(f"{type(self).__name__} knows no optimal actions")

    def outcome(self) -> dict[str, Tensor]:
        """Return further results of each environment's last episode by name, [T, E] each, such as ``success``."""
        return {}


class Wrapper(Environment):
    """An environment that forwards to ``env``; subclasses change or record a part of it."""

    def __init__(self, env: Environment) -> None:
        self.env = env
        self.horizon, self.episodes, self.tasks, self.device = env.horizon, env.episodes, env.tasks, env.device

    def generator(self) -> torch.Generator | None:
        return self.env.generator()

    def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
        return self.env.reset(num_envs, generator)

    def observe(self, state: Tensor) -> Tensor:
        return self.env.observe(state)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        return self.env.step(state, action, generator)

    def shaped(self, state: Tensor, reward: Tensor) -> Tensor:
        return self.env.shaped(state, reward)

    def truncated(self) -> Tensor | None:
        return self.env.truncated()

    def optimal_actions(self, state: Tensor, time: int) -> Tensor:
        return self.env.optimal_actions(state, time)

    def outcome(self) -> dict[str, Tensor]:
        return self.env.outcome()
