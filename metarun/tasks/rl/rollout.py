"""Rollouts: what agents saw, did and were paid in T tasks, E environments of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """S steps of T x E agents: one episode, or the consecutive episodes of a trial.

    Attributes:
        observation: [T, E, S, size], seen before acting.
        action: [T, E, S] if discrete, else [T, E, S, size].
        reward: [T, E, S], 0 once the episode has ended.
        running: [T, E, S] bool, true where the step was part of an episode. An environment that has finished waits for
            the others, its state unchanged.
        terminated: [T, E, S] bool, true where the episode ended with this step. Episodes without such a step were
            truncated, at the horizon or before.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    running: Tensor
    terminated: Tensor

    def returns(self) -> Tensor:
        """Undiscounted returns [T, E]."""
        return self.reward.sum(-1)

    def episode(self, number: int, horizon: int) -> Rollout:
        """Episode ``number`` of a trial; negative numbers count from the last."""
        start = number * horizon % self.reward.shape[2]
        return self._map(lambda x: x[:, :, start : start + horizon])

    def first(self, copies: int) -> Rollout:
        """The first ``copies`` environments of each task."""
        return self._map(lambda x: x[:, :copies])

    def joined(self, more: Rollout) -> Rollout:
        """These environments followed by those of ``more``, which are of the same tasks."""
        pairs = ((getattr(self, field.name), getattr(more, field.name)) for field in fields(self))
        return Rollout(*(torch.cat(pair, 1) for pair in pairs))

    def _map(self, f: Callable[[Tensor], Tensor]) -> Rollout:
        return Rollout(*(f(getattr(self, field.name)) for field in fields(self)))
