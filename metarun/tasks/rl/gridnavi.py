"""A grid with one hidden rewarding cell, a test of systematic exploration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun import style
from metarun.errors import require
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Spec
from metarun.tasks.rl.base import Environment
from metarun.tasks.rl.recording import RecordingEnv, draw_path
from metarun.tasks.rng import uniforms
from metarun.tasks.to_device import to_device
from metarun.types import Positive, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import RLLearner
    from metarun.tasks.rl.rollout import Rollout

STEPS = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
"""Moves of the actions: stay, up, right, down, left."""


class GridNavi(Task):
    """GridNavi (Zintgraf et al. 2020, arXiv:1910.08348, section 5.1): a grid of ``size`` x ``size`` cells.

    Episodes begin in the corner (0, 0). An action stays or moves to a neighbour; moving against a wall does nothing. A
    step that ends in the goal pays 1, any other costs .1. The goal is uniform over all cells except the corner and the
    three around it, and the same in all episodes of a trial. The splits draw from the same goals, as in the paper.

    Args:
        seed: Seed of the tasks.
        size: Cells on each side, at least 3.
        horizon: Steps of an episode.
        episodes: Episodes of a trial.
        observation: ``coordinates`` of the agent's cell, scaled to -1..1 (the paper), or its ``number``, one-hot.
    """

    kind: ClassVar[str] = "control"
    modality: ClassVar[str] = "vector"
    metric: ClassVar[str] = "return"

    def __init__(
        self,
        seed: int,
        *,
        size: Positive,
        horizon: Positive,
        episodes: Positive,
        observation: Literal["coordinates", "number"],
    ) -> None:
        require(size >= 3, f"task.size={size}: use 3 or more, since the goal lies outside the corner's four cells")
        self.seed, self.size, self.horizon, self.episodes = seed, size, horizon, episodes
        self.numbered = observation == "number"
        seen = (size**2 if self.numbered else 2,)
        self.spec = Spec("control", self.modality, seen, len(STEPS), True, has_expert=True)
        cells = [(x, y) for x in range(size) for y in range(size)]
        self.possible = np.array([cell for cell in cells if max(cell) > 1])

    def goals(self, split: Split, indices: Sequence[int]) -> NDArray[np.int64]:
        """Return the goal of each task, [T, 2]."""
        return self.possible[(len(self.possible) * uniforms(self.seed, split, indices, 1)[:, 0]).astype(int)]

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> Grid:
        return Grid(to_device(self.goals(split, indices), self.device), self, split, indices)

    def protocol(self) -> dict[str, Any]:
        sizes = {"size": self.size, "horizon": self.horizon, "episodes": self.episodes}
        return {"data": "GridNavi", **sizes, "observation": "number" if self.numbered else "coordinates"}

    def references(self, split: Split, indices: Sequence[int]) -> dict[str, float]:
        """Return trial returns: ``oracle`` knows the goal, ``still`` never moves."""
        away = self.goals(split, indices).sum(1)
        paid = np.maximum(self.horizon - away + 1, 0)
        oracle = paid - 0.1 * (self.horizon - paid)
        return {"oracle": self.episodes * float(oracle.mean()), "still": -0.1 * self.horizon * self.episodes}

    def cells(self, observation: Tensor) -> Tensor:
        """Return the cells [..., 2] that observations belong to."""
        if self.numbered:
            number = observation.argmax(-1)
            return torch.stack([number // self.size, number % self.size], -1).to(observation.dtype)
        return (observation + 1) * (self.size - 1) / 2

    def picture(self, learner: RLLearner) -> Figure:
        """Plot three test goals, a row each, with the path in every episode of a trial; later steps are darker.

        For a learner with a belief, the plot shows the reward that it expects in each cell at times of the first
        episodes.
        """
        from matplotlib.figure import Figure

        env = self.batch("test", range(3))
        recording = RecordingEnv(env)
        *_, rollout = learner.rollouts(recording)
        believed = self.believed(learner, env)
        if believed is not None:
            return self.beliefs(rollout, believed[:, -1].cpu(), recording)
        episodes = rollout.reward.shape[2] // env.horizon
        figure = Figure(figsize=(2.2 * max(episodes, 2), 7), layout="constrained")
        for task, row in enumerate(figure.subplots(3, episodes, squeeze=False)):
            for number, ax in enumerate(row):
                draw_path(ax, recording.path(rollout, task, number))
                ax.plot(*env.goals[task, 0].cpu(), "*", color=style.GOAL, ms=16, alpha=0.7)
                ax.set(xlim=(-0.6, self.size - 0.4), ylim=(-0.6, self.size - 0.4), aspect="equal", xticks=[], yticks=[])
                paid = float(rollout.episode(number, env.horizon).reward[task, -1].sum())
                ax.set_title(f"episode {number + 1}: return {paid:.1f}", fontsize=style.SMALL)
        figure.suptitle("Paths to hidden goals (stars) of the meta-test split")
        return figure

    def believed(self, learner: RLLearner, env: Grid) -> Tensor | None:
        """Return the reward that the learner's belief predicts for a step into each cell, [T, E, S, size, size]."""
        cells = torch.cartesian_prod(*2 * [torch.arange(self.size, device=env.device)])
        action = torch.arange(len(STEPS), device=env.device)
        before, action = cells.repeat_interleave(len(STEPS), 0), action.repeat(len(cells))
        moved, *_ = env.step(before[None], action[None], None)
        paid = learner.expected(env, env.observe(before[None])[0], action, env.observe(moved)[0])
        if paid is None:
            return None
        into = (moved[0, :, None] == cells).all(-1).to(paid.dtype)  # [steps, cells]
        return (paid @ into / into.sum(0)).unflatten(-1, (self.size, self.size))

    def beliefs(self, rollout: Rollout, paid: Tensor, recording: RecordingEnv) -> Figure:
        """Plot three tasks, a row each: the expected rewards [T, S, size, size] at six times, and the path so far."""
        from matplotlib.figure import Figure

        env: Any = recording.env
        times = [t for t in range(0, 2 * env.horizon, max(env.horizon // 3, 1)) if t < paid.shape[1]][:6]
        figure = Figure(figsize=(2.2 * len(times) + 1, 7), layout="constrained")
        axes = figure.subplots(3, len(times), squeeze=False)
        for task, row in enumerate(axes):
            for time, ax in zip(times, row, strict=True):
                shown = ax.imshow(paid[task, time].T, origin="lower", vmin=-0.1, vmax=1, cmap="YlGnBu")
                path = recording.path(rollout, task, time // env.horizon)[: time % env.horizon + 1]
                ax.plot(path[:, 0], path[:, 1], "-", color=style.GIVEN, lw=1.5)
                ax.plot(*path[-1], "o", color=style.GIVEN, ms=7)
                ax.plot(*env.goals[task, 0].cpu(), "*", color=style.GOAL, ms=14, alpha=0.8)
                ax.set(xticks=[], yticks=[])
                ax.set_title(f"episode {time // env.horizon + 1}, step {time % env.horizon}", fontsize=style.SMALL)
        figure.colorbar(shown, ax=axes, shrink=0.5, label="expected reward")
        figure.suptitle(
            "Expected reward of each cell under the policy's belief, and the path of the episode so far (star: goal)"
        )
        return figure


class Grid(Environment):
    """T goals; the state [T, E, 2] is the agent's cell."""

    is_deterministic: ClassVar[bool] = True

    def __init__(self, goals: Tensor, family: GridNavi, split: Split, indices: Sequence[int]) -> None:
        super().__init__(family.seed, split, indices, family.horizon, family.episodes)
        self.device, self.goals, self.last = goals.device, goals[:, None], family.size - 1
        self.moves = to_device(torch.tensor(STEPS), self.device)
        self.numbers = torch.arange(family.size**2, device=self.device) if family.numbered else None

    def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
        return torch.zeros(self.tasks, num_envs, 2, dtype=torch.long, device=self.device)

    def observe(self, state: Tensor) -> Tensor:
        return observed(state, self.last + 1, self.numbers)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        state = (state + self.moves[action]).clamp(0, self.last)
        reached = (state == self.goals).all(-1)
        return state, torch.where(reached, 1.0, -0.1).to(torch.get_default_dtype()), torch.zeros_like(reached)

    def optimal_actions(self, state: Tensor, time: int) -> Tensor:
        return toward(self.goals, state)


def observed(cell: Tensor, size: int, numbers: Tensor | None) -> Tensor:
    """Return observations of cells.

    Args:
        cell: Cells, [..., 2].
        size: Cells on each side of the grid.
        numbers: Numbers of all cells, [size * size]; ``None`` for coordinates.

    Returns:
        The cell's number, one-hot, [..., size * size], or its coordinates scaled to -1..1, [..., 2].
    """
    dtype = torch.get_default_dtype()
    if numbers is None:
        return 2 * cell.to(dtype) / (size - 1) - 1
    return ((cell[..., 0] * size + cell[..., 1])[..., None] == numbers).to(dtype)


def toward(goal: Tensor, cell: Tensor) -> Tensor:
    """Return which :data:`STEPS` are on a shortest path from ``cell`` to ``goal``, [..., 2] each, as [..., 5] bool."""
    x, y = (goal - cell).unbind(-1)
    return torch.stack([(x == 0) & (y == 0), y > 0, x > 0, y < 0, x < 0], -1)
