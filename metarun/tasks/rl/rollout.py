"""Rollouts: observations, actions and rewards of T tasks x E environments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """S steps of T x E environments: one episode, or the consecutive episodes of a trial.

    Attributes:
        observation: [T, E, S, size], before the action.
        action: [T, E, S] if discrete, else [T, E, S, size].
        reward: [T, E, S], 0 once the episode has ended.
        mask: [T, E, S] bool, true for the steps of an episode. An environment whose episode has ended waits for
            the others, its state unchanged.
        terminated: [T, E, S] bool, true where the episode ended with this step. Episodes without such a step were
            truncated, at the horizon or before.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    mask: Tensor
    terminated: Tensor

    def returns(self) -> Tensor:
        """Return the undiscounted returns, [T, E]."""
        return self.reward.sum(-1)

    def episode(self, number: int, horizon: int) -> Rollout:
        """Return one episode of a trial.

        Args:
            number: Number of the episode, from 0; negative numbers count from the last.
            horizon: Steps of an episode.
        """
        start = number * horizon % self.reward.shape[2]
        return self._map(lambda x: x[:, :, start : start + horizon])

    def first(self, num_envs: int) -> Rollout:
        """Return the first environments of each task.

        Args:
            num_envs: Number of environments.
        """
        return self._map(lambda x: x[:, :num_envs])

    def concatenate(self, more: Rollout) -> Rollout:
        """Append environments.

        Args:
            more: Rollouts of the same tasks with as many steps.

        Returns:
            Rollouts [T, E + more E, S].
        """
        pairs = ((getattr(self, field.name), getattr(more, field.name)) for field in fields(self))
        return Rollout(*(torch.cat(pair, 1) for pair in pairs))

    def _map(self, f: Callable[[Tensor], Tensor]) -> Rollout:
        return Rollout(*(f(getattr(self, field.name)) for field in fields(self)))
