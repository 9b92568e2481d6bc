"""The replay buffer of off-policy learners, with the experience of each task kept apart."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Steps(NamedTuple):
    """Steps in environments, each [..., size] or [...]."""

    observation: Tensor
    action: Tensor
    reward: Tensor
    after: Tensor
    """Next observation, also at the end of an episode."""
    shaped: Tensor
    """Reward shaped by the task family for meta-training."""
    terminated: Tensor
    """1 where the environment terminated, else 0."""

    def packed(self) -> Tensor:
        """Return one tensor [..., 2 * observation + action + 3]. The entries that a context holds come first."""
        parts = (self.observation, self.action, self.reward[..., None], self.after)
        return torch.cat([*parts, self.shaped[..., None], self.terminated[..., None].to(self.reward.dtype)], -1)

    @classmethod
    def unpacked(cls, x: Tensor, observation: int, action: int) -> Steps:
        """Return the steps that :meth:`packed` made a tensor of."""
        seen, did, reward, after, shaped, terminated = x.split([observation, action, 1, observation, 1, 1], -1)
        return cls(seen, did, reward[..., 0], after, shaped[..., 0], terminated[..., 0])


class TaskReplay:
    """A ring buffer of the trials in the last N = ``tasks`` tasks, one place for each.

    In memory and in checkpoints it takes N * trials * steps of a trial * (2 * observation + action + 3) numbers.
    """

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self.seen = 0
        self.data: Tensor | None = None
        """Steps of E trials for each task, [N, E, S, size]. The valid steps of a trial come first."""
        self.counts: Tensor | None = None
        """Number of valid steps of each trial, and of those for contexts, which come first: [2, N, E]."""

    def add(self, steps: Tensor, counts: Tensor, contexts: Tensor) -> None:
        """Store the trials of T <= N tasks, over the oldest ones.

        Args:
            steps: Packed steps [T, E, S, size].
            counts: True for valid steps, [T, E, S].
            contexts: True for steps that contexts may hold, [T, E, S].
        """
        order = (2 - counts.long() - (counts & contexts).long()).argsort(dim=-1, stable=True)
        steps = steps.gather(2, order[..., None].expand_as(steps))
        numbers = torch.stack([counts.sum(-1), (counts & contexts).sum(-1)])
        if self.data is None or self.counts is None:
            self.data = steps.new_zeros(self.tasks, *steps.shape[1:])
            self.counts = numbers.new_zeros(2, self.tasks, steps.shape[1])
        first = self.seen % self.tasks
        places = (torch.arange(len(steps), device=steps.device) + first) % self.tasks
        self.data[places] = steps
        self.counts[:, places] = numbers
        self.seen += len(steps)

    def choose(self, count: int) -> Tensor:
        """Sample the places of ``count`` tasks, uniformly with replacement."""
        assert self.data is not None
        return torch.randint(min(self.seen, self.tasks), (count,), device=self.data.device)

    def draw(self, places: Tensor, count: int) -> Tensor:
        """Sample ``count`` steps of each task from all its trials; return [M, count, size]."""
        assert self.data is not None
        return self._steps(places, torch.randint(self.data.shape[1], (len(places), count), device=places.device), 0)

    def draw_context(self, places: Tensor, count: int) -> Tensor:
        """Sample ``count`` context steps of each task, all from one of its trials; return [M, count, size]."""
        assert self.data is not None
        trial = torch.randint(self.data.shape[1], (len(places), 1), device=places.device)
        return self._steps(places, trial.expand(-1, count), 1)

    def _steps(self, places: Tensor, trials: Tensor, which: int) -> Tensor:
        """Sample steps of these places [M] and trials [M, count], uniformly with replacement."""
        assert self.data is not None
        assert self.counts is not None
        there = self.counts[which][places[:, None], trials]
        index = (torch.rand(there.shape, device=places.device) * there).long().minimum(there - 1)
        return self.data[places[:, None], trials, index]

    def checkpoint(self) -> dict[str, Any]:
        return {"seen": self.seen, "data": self.data, "counts": self.counts}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`checkpoint` returned."""
        held = state["data"]
        if held is not None and len(held) != self.tasks:
            raise ValueError(f"a replay of {len(held)} tasks, not of {self.tasks}")
        self.seen = state["seen"]
        self.data, self.counts = (None if x is None else x.clone() for x in (held, state["counts"]))
