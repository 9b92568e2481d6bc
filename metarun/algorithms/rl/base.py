"""Base class of RL algorithms: they are evaluated on the returns of their rollouts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metarun.algorithms.base import Algorithm, Metrics
from metarun.algorithms.rl.collect import Rollout, collect
from metarun.tasks.episode import Spec
from metarun.tasks.rl.base import Environment


class ControlAlgorithm(Algorithm):
    """A learner that adapts from experience, in T tasks at once: a control family's batched environment."""

    kinds: ClassVar[tuple[str, ...]] = ("control",)

    @abstractmethod
    def rollouts(self, env: Environment) -> Iterator[Rollout]:
        """Experience on test tasks after 0, 1, ... adaptation steps, of one episode or a whole trial each."""

    def expected(self, env: Environment, observation: Tensor, action: Tensor, after: Tensor) -> Tensor | None:
        """Rewards that a learner with a belief predicts for steps, at each time of the trials of :meth:`rollouts`.

        The N steps are told by ``observation`` [N, size], ``action`` [N] or [N, size] and next observation ``after``
        [N, size]; [T, E, S, N]. ``None``: it has no such belief.
        """
        return None

    def evaluate(self, batch: Environment) -> Metrics:
        """``return`` [T, k + 1]: of a trial; without a memory, of as many episodes as one has.

        For a learner with a memory also ``episode_return`` [T, K], that of each of its K episodes. Where the
        environment tells an ``outcome``, also the share of last episodes that had it, [T, k + 1].
        """
        self.eval()
        rollouts, columns = [], []
        for rollout in self.rollouts(batch):
            rollouts.append(rollout)
            episodes = rollout.reward.shape[2] // batch.horizon
            returns = rollout.returns().mean(1) * (batch.episodes / episodes)
            columns.append({"return": returns, **{name: each.mean(1) for name, each in batch.outcome().items()}})
        found = {name: torch.stack([column[name] for column in columns], 1) for name in columns[0]}
        if len(rollouts) == 1 and rollouts[0].reward.shape[2] == batch.episodes * batch.horizon:
            each = rollouts[0].reward.unflatten(-1, (batch.episodes, batch.horizon)).sum(-1)
            found["episode_return"] = each.mean(1)
        return found


class TrialLearner(ControlAlgorithm):
    """A learner that acts through whole trials, ``test_rollouts`` of each task at test."""

    model: Any
    spec: Spec
    test_rollouts: int

    def __init__(self, model: nn.Module, spec: Spec, test_rollouts: int) -> None:
        super().__init__()
        self.model, self.spec, self.test_rollouts = model, spec, test_rollouts

    @abstractmethod
    def agent(self, env: Environment) -> Any:
        """Return the agent that acts in a trial, from its start. It may keep state."""

    def trial(self, env: Environment, copies: int) -> tuple[Rollout, Any]:
        """``copies`` trials of each task, and the agent that acted in them."""
        agent = self.agent(env)
        return collect(env, self.spec, agent, copies, env.episodes, env.generator()), agent

    def rollouts(self, env: Environment) -> Iterator[Rollout]:
        yield self.trial(env, self.test_rollouts)[0]


def by_step(x: Tensor) -> Tensor:
    """[T, E, S, ...] -> [S, T * E, ...]."""
    return x.flatten(0, 1).transpose(0, 1)
