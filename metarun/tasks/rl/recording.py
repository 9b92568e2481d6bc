"""Environments that record the states that they go through, for pictures of paths, or optimal actions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metarun import style
from metarun.tasks.rl.base import Environment, Wrapper
from metarun.tasks.rl.rollout import Rollout

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class RecordingEnv(Wrapper):
    """Records the states before and after each step.

    A rollout has only the observations before its steps: they may not show the state, and the state that the last step
    led to is missing.
    """

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self.steps: list[tuple[Tensor, Tensor]] = []

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        after, *others = super().step(state, action, generator)
        self.steps.append((state, after))
        return after, *others  # type: ignore[return-value]

    def path(self, rollout: Rollout, task: int, episode: int, number: int = -1) -> Tensor:
        """Return the states of one episode of the rollout just made, from the first to where the last step led.

        Args:
            rollout: The last rollout of this environment.
            task: Number of the task.
            episode: Number of the episode in the trial; negative numbers count from the last.
            number: Number of the parallel environment, negative: a rollout joined from several ends with those of the
                last.

        Returns:
            States [steps + 1, ...] on the CPU.
        """
        length = rollout.reward.shape[2]
        start = episode * self.horizon % length
        count = int(rollout.mask[task, number, start : start + self.horizon].sum())
        made = self.steps[len(self.steps) - length + start :][:count]
        return torch.stack([made[0][0][task, number], *(after[task, number] for _, after in made)]).cpu()


class ExpertEnv(Wrapper):
    """Records which actions are optimal, [T, E, A], before each step of a trial."""

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self.optimal: list[Tensor] = []

    def observe(self, state: Tensor) -> Tensor:
        self.optimal.append(self.env.optimal_actions(state, len(self.optimal) % self.horizon))
        return super().observe(state)


def draw_path(ax: Axes, cells: Tensor) -> None:
    """Draw a path over cells [steps + 1, 2] of a grid; later steps are darker.

    Points are moved off the cells' centres so that a path that comes back is visible; the last one is at the centre.
    """
    path = cells + torch.linspace(-0.25, 0, len(cells))[:, None]
    ax.plot(path[:, 0], path[:, 1], color="0.7", lw=1)
    ax.scatter(path[:, 0], path[:, 1], c=style.later(len(path)), s=16, zorder=2)
