"""2-D point navigation to a hidden goal, as in MAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun import style
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Spec
from metarun.tasks.rl.base import Environment
from metarun.tasks.rl.recording import RecordingEnv
from metarun.tasks.rng import uniforms
from metarun.tasks.to_device import to_device
from metarun.types import Positive, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import RLLearner

GOAL_RANGE = 0.5
TOP_SPEED = 0.1
REACHED = 0.01

Actions = Literal["scaled", "clipped"]
Reward = Literal["distance", "squared_distance"]


class Navigation(Task):
    """2-D navigation (Finn et al. 2017, section 5.3.1): goals ~ U[-.5, .5]^2, start at 0, steps of at most .1.

    The observation is the position; the goal is hidden. An episode terminates when both coordinates are within .01 of
    the goal. The published codes differ in actions and rewards, and so do their returns.

    Args:
        seed: Seed of the tasks.
        actions: ``scaled`` maps the policy's [-1, 1] to a step in [-.1, .1] (the authors' code). ``clipped`` takes the
            output as the step itself, clipped at .1 (the PyTorch ports).
        reward: ``distance``: minus the distance to the goal after the step (all codes). ``squared_distance``: minus its
            square (the paper's text).
        horizon: Steps after which an episode is truncated.
        episodes: Episodes of a trial, for learners with a hidden state. The return is that of a trial.
        test_goals: ``drawn``, or ``authors`` for the 40 goals of the authors' test script.
    """

    kind: ClassVar[str] = "control"
    modality: ClassVar[str] = "vector"
    metric: ClassVar[str] = "return"

    def __init__(
        self,
        seed: int,
        *,
        actions: Actions,
        reward: Reward,
        horizon: Positive,
        episodes: Positive,
        test_goals: Literal["drawn", "authors"],
    ) -> None:
        self.seed = seed
        self.actions, self.reward, self.test_goals = actions, reward, test_goals
        self.horizon, self.episodes = horizon, episodes
        self.spec = Spec("control", self.modality, (2,), 2)

    def goals(self, split: Split, indices: Sequence[int]) -> NDArray[np.float64]:
        """Return the goal of each task, [T, 2]. The authors' 40 goals repeat for larger indices."""
        if split == "test" and self.test_goals == "authors":
            fixed = np.random.RandomState(1).uniform(-GOAL_RANGE, GOAL_RANGE, (40, 2))
            return fixed[np.asarray(indices) % len(fixed)]
        return GOAL_RANGE * (2 * uniforms(self.seed, split, indices, 2) - 1)

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> Plane:
        goals = to_device(self.goals(split, indices), self.device, torch.get_default_dtype())
        return Plane(goals, self, split, indices)

    def protocol(self) -> dict[str, Any]:
        return {
            "data": "navigation",
            "actions": self.actions,
            "reward": self.reward,
            "horizon": self.horizon,
            "episodes": self.episodes,
            "test_goals": self.test_goals,
        }

    def references(self, split: Split, indices: Sequence[int]) -> dict[str, float]:
        """Return trial returns: ``oracle`` knows the goal and moves optimally, ``still`` never moves."""
        goals = np.abs(self.goals(split, indices))
        best, still = self._oracle_returns(goals), -self.horizon * self._cost(goals)
        return {"oracle": self.episodes * float(best.mean()), "still": self.episodes * float(still.mean())}

    def _oracle_returns(self, goals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the optimal return of an episode, [T], for goals in the positive quadrant.

        The optimal path moves at full speed in each coordinate until it is reached: no path is nearer in either
        coordinate at any step.
        """
        time = np.arange(1, self.horizon + 1)[:, None]
        left = np.maximum(goals[:, None] - TOP_SPEED * time, 0)
        reached = (left < REACHED).all(-1)
        # The step that reaches the goal still counts.
        mask: NDArray[np.bool_] = np.cumsum(reached, axis=1) - reached == 0
        return -(self._cost(left) * mask).sum(1)

    def _cost(self, offset: NDArray[np.float64]) -> NDArray[np.float64]:
        square = np.square(offset).sum(-1)
        return square if self.reward == "squared_distance" else np.sqrt(square)

    def picture(self, learner: RLLearner) -> Figure:
        """Plot four test goals with the paths before and after adaptation (the first and last episode of a trial)."""
        from matplotlib.figure import Figure

        recording = RecordingEnv(self.batch("test", range(4)))
        stages: list[dict[int, list[list[Tensor]]]] = []
        """Paths of the first (0) and the last (-1) episode of each stage, of each task, of up to three environments."""
        for rollout in learner.rollouts(recording):
            numbers = range(-min(3, rollout.mask.shape[1]), 0)
            stages.append(
                {at: [[recording.path(rollout, task, at, n) for n in numbers] for task in range(4)] for at in (0, -1)}
            )
        goals = self.goals("test", range(4))
        figure = Figure(figsize=(13, 3.6), layout="constrained")
        axes = figure.subplots(1, 4, sharex=True, sharey=True)
        for task, ax in enumerate(axes):
            for paths, look, label in (
                (stages[0][0][task], {"color": style.EARLY, "ls": "--"}, "before adaptation"),
                (stages[-1][-1][task], {"color": style.LATE, "ls": "-"}, "after adaptation"),
            ):
                for number, path in enumerate(paths):
                    ax.plot(path[:, 0], path[:, 1], lw=1, label=None if number else label, **look)
            ax.plot(*goals[task], "*", color=style.GIVEN, ms=13, label="goal")
            ax.plot(0, 0, "o", color=style.TRUTH, ms=4, label="start")
            ax.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), aspect="equal", xlabel="x", title=f"test task {task + 1}")
        axes[0].set_ylabel("y")
        style.legend(figure, axes[0])
        figure.suptitle("Navigation to hidden goals of the meta-test split")
        return figure


class Plane(Environment):
    """T goals in the plane; the state [T, E, 2] is the position."""

    is_deterministic: ClassVar[bool] = True

    def __init__(self, goals: Tensor, family: Navigation, split: Split, indices: Sequence[int]) -> None:
        super().__init__(family.seed, split, indices, family.horizon, family.episodes)
        self.device = goals.device
        self.goals = goals[:, None]
        self.scaled = family.actions == "scaled"
        self.squared = family.reward == "squared_distance"

    def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
        return self.goals.new_zeros(self.tasks, num_envs, 2)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        move = action.clamp(-1, 1) * TOP_SPEED if self.scaled else action.clamp(-TOP_SPEED, TOP_SPEED)
        state = state + move
        offset = state - self.goals
        square = offset.square().sum(-1)
        reward = -square if self.squared else -square.sqrt()
        return state, reward, offset.abs().amax(-1) < REACHED
