"""Experience kept apart by task, for learners that go on learning from it."""

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
    """The reward as the family shapes it for meta-training."""
    terminated: Tensor
    """1 where nothing comes after, else 0."""

    def packed(self) -> Tensor:
        """All in one tensor [..., 2 * observation + action + 3], what a context is made of first."""
        parts = (self.observation, self.action, self.reward[..., None], self.after)
        return torch.cat([*parts, self.shaped[..., None], self.terminated[..., None].to(self.reward.dtype)], -1)

    @classmethod
    def unpacked(cls, x: Tensor, observation: int, action: int) -> Steps:
        """The inverse of :meth:`packed`."""
        seen, did, reward, after, shaped, terminated = x.split([observation, action, 1, observation, 1, 1], -1)
        return cls(seen, did, reward[..., 0], after, shaped[..., 0], terminated[..., 0])


class TaskReplay:
    """Trials in the last ``tasks`` tasks, N, that were :meth:`add`-ed: one place each, the oldest overwritten.

    In memory and in checkpoints it takes N * trials * steps of a trial * (2 * observation + action + 3) numbers.
    """

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self.seen = 0
        self.data: Tensor | None = None
        """[N, E, S, size]: E trials a task; the steps of a trial that count before those that do not."""
        self.counts: Tensor | None = None
        """[2, N, E]: how many steps of each trial count, and how many of them, the first, are for contexts."""

    def add(self, steps: Tensor, counts: Tensor, contexts: Tensor) -> None:
        """``steps`` [T, E, S, size] of T <= N tasks: which ``counts`` [T, E, S], and which of them are for contexts."""
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
        """The places of ``count`` tasks, drawn uniformly with replacement."""
        assert self.data is not None
        return torch.randint(min(self.seen, self.tasks), (count,), device=self.data.device)

    def draw(self, places: Tensor, count: int) -> Tensor:
        """``count`` steps of each task, [M, count, size], each of a trial drawn for it."""
        assert self.data is not None
        return self._steps(places, torch.randint(self.data.shape[1], (len(places), count), device=places.device), 0)

    def draw_context(self, places: Tensor, count: int) -> Tensor:
        """``count`` steps of each task that are for contexts, [M, count, size], all of one trial."""
        assert self.data is not None
        trial = torch.randint(self.data.shape[1], (len(places), 1), device=places.device)
        return self._steps(places, trial.expand(-1, count), 1)

    def _steps(self, places: Tensor, trials: Tensor, which: int) -> Tensor:
        """Steps of these places [M] and trials [M, count], uniform with replacement."""
        assert self.data is not None
        assert self.counts is not None
        there = self.counts[which][places[:, None], trials]
        index = (torch.rand(there.shape, device=places.device) * there).long().minimum(there - 1)
        return self.data[places[:, None], trials, index]

    def checkpoint(self) -> dict[str, Any]:
        return {"seen": self.seen, "data": self.data, "counts": self.counts}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`checkpoint`."""
        held = state["data"]
        if held is not None and len(held) != self.tasks:
            raise ValueError(f"a replay of {len(held)} tasks, not of {self.tasks}")
        self.seen = state["seen"]
        self.data, self.counts = (None if x is None else x.clone() for x in (held, state["counts"]))
