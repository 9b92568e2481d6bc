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
    """What was seen next, the episode's end included."""
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
    """The steps of the last ``tasks`` tasks, N, that were :meth:`add`-ed: one place each, the oldest overwritten.

    In memory and in checkpoints it takes N * steps a task * (2 * observation + action + 3) numbers.
    """

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self.seen = 0
        self.data: Tensor | None = None
        """[N, steps a task, size], the steps of a task that count before those that do not."""
        self.counts: Tensor | None = None
        """[2, N]: how many steps count, and how many of them, the first, are for contexts."""

    def add(self, steps: Tensor, counts: Tensor, contexts: Tensor) -> None:
        """``steps`` [T, S, size] of T <= N tasks: those that ``counts`` [T, S], and those among them for contexts."""
        order = (2 - counts.long() - (counts & contexts).long()).argsort(dim=1, stable=True)
        steps = steps.gather(1, order[..., None].expand_as(steps))
        numbers = torch.stack([counts.sum(1), (counts & contexts).sum(1)])
        if self.data is None or self.counts is None:
            self.data = steps.new_zeros(self.tasks, *steps.shape[1:])
            self.counts = numbers.new_zeros(2, self.tasks)
        first = self.seen % self.tasks
        places = (torch.arange(len(steps), device=steps.device) + first) % self.tasks
        self.data[places] = steps
        self.counts[:, places] = numbers
        self.seen += len(steps)

    def choose(self, count: int) -> Tensor:
        """The places of ``count`` tasks, drawn uniformly with replacement."""
        assert self.data is not None
        return torch.randint(min(self.seen, self.tasks), (count,), device=self.data.device)

    def draw(self, places: Tensor, count: int, context: bool = False) -> Tensor:
        """``count`` steps of each task, uniform with replacement, [M, count, size]: of all, or those for contexts."""
        assert self.data is not None
        assert self.counts is not None
        there = self.counts[int(context)][places, None]
        index = (torch.rand(len(places), count, device=places.device) * there).long().minimum(there - 1)
        return self.data[places[:, None], index]

    def checkpoint(self) -> dict[str, Any]:
        return {"seen": self.seen, "data": self.data, "counts": self.counts}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`checkpoint`."""
        held = state["data"]
        if held is not None and len(held) != self.tasks:
            raise ValueError(f"a replay of {len(held)} tasks, not of {self.tasks}")
        self.seen = state["seen"]
        self.data, self.counts = (None if x is None else x.clone() for x in (held, state["counts"]))
