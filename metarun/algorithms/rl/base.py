"""What the learners of control have in common: they are judged by the returns of their rollouts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch

from metarun.algorithms.base import Algorithm, Metrics
from metarun.algorithms.rl.collect import Rollout
from metarun.tasks.rl.base import Environment


class ControlAlgorithm(Algorithm):
    """A learner that adapts from experience, in T tasks at once: a control family's batched environment."""

    kinds: ClassVar[tuple[str, ...]] = ("control",)

    @abstractmethod
    def rollouts(self, env: Environment) -> Iterator[Rollout]:
        """Experience on test tasks after 0, 1, ... adaptation steps, of one episode or a whole trial each."""

    def evaluate(self, batch: Environment) -> Metrics:
        """``return`` [T, k + 1]: of a trial; without a memory, of as many episodes as one has."""
        self.eval()
        returns = []
        for rollout in self.rollouts(batch):
            episodes = rollout.reward.shape[2] // batch.horizon
            returns.append(rollout.returns().mean(1) * (batch.episodes / episodes))
        return {"return": torch.stack(returns, 1)}
