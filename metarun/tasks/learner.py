"""Protocols for the part of an algorithm that task families use to plot and film an adapted learner.

Task families know algorithms by these protocols only and import none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from typing import Self

    from metarun.tasks.episode import Labelled
    from metarun.tasks.rl.base import Environment
    from metarun.tasks.rl.rollout import Rollout

Predictor = Callable[[Tensor], Tensor]
"""An adapted learner: query inputs [T, N, ...] -> predictions [T, N, outputs], batched over tasks."""


class Learner(Protocol):
    """A supervised learner: it adapts to the support sets of T tasks."""

    def eval(self) -> Self:
        """Switch to evaluation mode, as a torch module does."""

    def adapt(self, support: Labelled) -> Predictor:
        """Return the learner adapted to each task."""

    def adaptations(self, support: Labelled) -> Iterable[Predictor]:
        """Yield the learner after 0, 1, ... adaptation steps; only the result if it adapts in one step."""


class RLLearner(Protocol):
    """A learner that adapts from experience in T tasks."""

    def rollouts(self, env: Environment) -> Iterator[Rollout]:
        """Yield test rollouts after 0, 1, ... adaptation steps: one episode or a whole trial each."""

    def expected(self, env: Environment, observation: Tensor, action: Tensor, after: Tensor) -> Tensor | None:
        """Return the rewards that the learner's belief predicts, at each time of the last :meth:`rollouts`.

        Args:
            env: The environment of those rollouts.
            observation: [N, size], the observation before each of N steps.
            action: [N] or [N, size].
            after: [N, size], the observation after each step.

        Returns:
            [T, E, S, N], or ``None`` for a learner without a belief about rewards.
        """
