"""Base class of RL algorithms: they are evaluated on the returns of their rollouts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from metarun.algorithms.base import Algorithm, Metrics
from metarun.algorithms.rl.collect import Rollout, collect
from metarun.tasks.episode import Spec
from metarun.tasks.rl.base import Environment


class Recorder(Protocol):
    """Computes functions of an algorithm from recordings (:class:`metarun.engine.recorder.Recorder`)."""

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any: ...

    def backward(self, loss: Callable[..., Any], *arguments: Any) -> Mapping[str, Tensor] | None: ...


class RLAlgorithm(Algorithm):
    """The base class of RL algorithms, which adapt from experience in T tasks at once, a batched environment.

    A subclass implements :meth:`meta_step` and :meth:`rollouts`. Learners that act through whole trials subclass
    :class:`TrialLearner`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("control",)
    recorder: Recorder | None = None
    """Set by a run where launching operations takes longer than computing them; ``None``: nothing is recorded."""

    def repeat(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``function(*arguments)``, from a recording if the run makes some; results are then detached.

        Args:
            function: A function, the same object at each call, of nothing that changes but the algorithm's parameters
                and its arguments.
            arguments: Tensors, also in nested tuples, lists and dictionaries; modules, numbers, ``None``.
        """
        return function(*arguments) if self.recorder is None else self.recorder(function, *arguments)

    def backward(self, loss: Callable[..., Any], *arguments: Any) -> dict[str, Tensor]:
        """Add the gradient of a loss to those that the parameters hold.

        Args:
            loss: A function as that of :meth:`repeat`, to the loss [], or to the loss and further scalars by name.
            arguments: Its arguments.

        Returns:
            The scalars, detached. The loss is the one without a name, ``""``.
        """
        recorded = None if self.recorder is None else self.recorder.backward(loss, *arguments)
        if recorded is not None:
            return {**recorded}
        value, scalars = with_scalars(loss(*arguments))
        value.backward()
        return {name: each.detach() for name, each in {"": value, **scalars}.items()}

    @abstractmethod
    def rollouts(self, env: Environment) -> Iterator[Rollout]:
        """Yield experience on test tasks after 0, 1, ... adaptation steps.

        Args:
            env: Batched environment of T test tasks.

        Yields:
            Rollouts of one episode, or of a whole trial, in E environments of each task.
        """

    def expected(self, env: Environment, observation: Tensor, action: Tensor, after: Tensor) -> Tensor | None:
        """Return the rewards that a learner with a belief predicts at each time of the trials of :meth:`rollouts`.

        Args:
            env: Batched environment of T tasks.
            observation: Observations of N steps, [N, size].
            action: Actions of these steps, [N] or [N, size].
            after: Observations after these steps, [N, size].

        Returns:
            Predicted rewards [T, E, S, N]; ``None`` if the learner has no belief.
        """
        return None

    def evaluate(self, batch: Environment) -> Metrics:
        """Adapt to each task and measure the returns.

        Args:
            batch: Batched environment of T test tasks.

        Returns:
            ``return`` [T, k + 1], the return of a trial after 0, ..., k adaptation steps. For a learner that acts one
            episode at a time, it is the mean return of an episode times the episodes of a trial. A learner that acts
            through whole trials also has ``episode_return`` [T, K], the return of each of the K episodes. For each
            ``outcome`` of the environment, the share of last episodes that had it, [T, k + 1].
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


class TrialLearner(RLAlgorithm):
    """The base class of learners that act through whole trials, ``test_rollouts`` trials of each task at test.

    A subclass implements :meth:`meta_step` and :meth:`agent`.
    """

    test_rollouts: int

    def __init__(self, model: nn.Module, spec: Spec, test_rollouts: int) -> None:
        super().__init__()
        self.model, self.spec, self.test_rollouts = model, spec, test_rollouts

    @abstractmethod
    def agent(self, env: Environment) -> Any:
        """Return an agent at the start of a trial.

        Args:
            env: Batched environment of T tasks.

        Returns:
            A function from :class:`~metarun.algorithms.rl.collect.Transition` to the parameters of action
            distributions [T, E, outputs]. It may keep state from step to step.
        """

    def trial(self, env: Environment, num_envs: int) -> tuple[Rollout, Any]:
        """Run trials.

        Args:
            env: Batched environment of T tasks.
            num_envs: Number of trials of each task, E.

        Returns:
            The rollouts [T, E, S], and the agent that acted in them.
        """
        agent = self.agent(env)
        rollout = collect(env, self.spec, agent, num_envs, env.episodes, env.generator(), self.repeat)
        return rollout, agent

    def rollouts(self, env: Environment) -> Iterator[Rollout]:
        yield self.trial(env, self.test_rollouts)[0]


def with_scalars(found: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return a loss and its scalars, of a loss alone or of both."""
    return found if isinstance(found, tuple) else (found, {})


def by_step(x: Tensor) -> Tensor:
    """Rearrange a tensor [T, E, S, ...] to [S, T * E, ...]."""
    return x.flatten(0, 1).transpose(0, 1)
