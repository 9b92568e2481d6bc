"""The RL learner of a run: its meta-trained parameters, ready to adapt by acting in environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metarun.algorithms.rl.base import RLAlgorithm
from metarun.config.trust import Trust
from metarun.errors import UserError
from metarun.runs.stored import rebuild, trained
from metarun.tasks.base import Task
from metarun.tasks.rl.base import Environment
from metarun.tasks.rl.rollout import Rollout


@dataclass(frozen=True)
class TrainedAgent:
    """A meta-trained RL learner. It adapts to tasks by acting in them."""

    algorithm: RLAlgorithm
    """The algorithm with its meta-parameters, a torch module."""
    task: Task
    """The task family of the run; ``task.batch("test", range(8))`` is an environment of eight held-out tasks."""
    iteration: int
    """The iteration of the checkpoint that it comes from."""

    def adapt(self, environment: Environment) -> list[Rollout]:
        """Adapt to T tasks by acting in them.

        Args:
            environment: T tasks with the observations and actions of the run's task family, on its device: a batch of
                the family, or an :class:`~metarun.tasks.rl.base.Environment` of your own.

        Returns:
            The experience after 0, 1, ... adaptation steps, or a single whole trial if the learner adapts within a
            trial. ``rollouts[-1].returns()`` are undiscounted returns [T, E] in E parallel environments of each task.
        """
        self.algorithm.eval()
        return list(self.algorithm.rollouts(environment))

    def evaluate(self, environment: Environment) -> dict[str, Tensor]:
        """Adapt to T tasks and measure the returns, as the run does on its test tasks.

        Args:
            environment: As in :meth:`adapt`.

        Returns:
            ``return`` [T, k + 1] after 0, ..., k adaptation steps, and further metrics of the learner and the
            environment.
        """
        return self.algorithm.evaluate(environment)


def agent_of(run: Sequence[str], trust: Trust, objects: Mapping[str, Any]) -> TrainedAgent:
    """Return the RL learner that a run tests.

    Args:
        run: The run directory, alone in a sequence.
        trust: Which code beside metarun's own the stored configuration may call.
        objects: Components that exist already, by section.

    Raises:
        UserError: The run learns from support sets, or its checkpoint does not fit its configuration.
    """
    directory, experiment, _ = rebuild("load", run, (), trust, objects=objects)
    iteration = trained(directory, experiment)[1]
    algorithm = experiment.algorithm
    if not isinstance(algorithm, RLAlgorithm):
        raise UserError("this run's learner adapts to support sets   in Python: run.learner, metarun.adapt(run, ...)")
    return TrainedAgent(algorithm, experiment.task, iteration)
