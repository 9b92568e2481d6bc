"""2-D point navigation with a sparse reward near the hidden goal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

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
from metarun.types import Positive, Rate, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import RLLearner

TOP_SPEED = 0.1


class SparseNavigation(Task):
    """Sparse 2-D navigation (Rakelly et al. 2019, arXiv:1903.08254, section 6.3).

    Goals lie on the upper half of the unit circle, at uniform angles, and are the same in all episodes of a trial. A
    point starts at the centre and moves by the action, clipped to [-1, 1], times .1 in each coordinate. A step that
    ends at a distance d <= ``radius`` from the goal pays 1 - d, any other 0. The observation is the position.

    As in the paper, meta-training may use a dense reward, minus the distance (:meth:`Disc.shaped`). The paper
    meta-trains on a fixed list of goals, which its code spaces evenly; here each task has its own.

    Args:
        seed: Seed of the tasks.
        radius: Distance from the goal within which a step is rewarded.
        horizon: Steps of an episode; it never ends earlier.
        episodes: Episodes of a trial.
    """

    kind: ClassVar[str] = "control"
    modality: ClassVar[str] = "vector"
    metric: ClassVar[str] = "return"

    def __init__(self, seed: int, *, radius: Rate, horizon: Positive, episodes: Positive) -> None:
        self.seed, self.radius, self.horizon, self.episodes = seed, radius, horizon, episodes
        self.spec = Spec("control", self.modality, (2,), 2)

    def goals(self, split: Split, indices: Sequence[int]) -> NDArray[np.float64]:
        """Return the goal of each task, [T, 2]."""
        angle = np.pi * uniforms(self.seed, split, indices, 1)[:, 0]
        return np.stack([np.cos(angle), np.sin(angle)], 1)

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> Disc:
        goals = to_device(self.goals(split, indices), self.device, torch.get_default_dtype())
        return Disc(goals, self, split, indices)

    def protocol(self) -> dict[str, Any]:
        sizes = {"radius": self.radius, "horizon": self.horizon, "episodes": self.episodes}
        return {"data": "sparse navigation", **sizes}

    def references(self, split: Split, indices: Sequence[int]) -> dict[str, float]:
        """Return the trial return of an ``oracle`` that knows the goal. A policy that never finds it gets 0.

        The oracle moves at full speed in each coordinate until it is reached: no path is nearer in either coordinate at
        any step.
        """
        time = np.arange(1, self.horizon + 1)[:, None]
        left = np.maximum(np.abs(self.goals(split, indices))[:, None] - TOP_SPEED * time, 0)
        distance = np.sqrt(np.square(left).sum(-1))
        oracle = ((1 - distance) * (distance <= self.radius)).sum(1)
        return {"oracle": self.episodes * float(oracle.mean())}

    def picture(self, learner: RLLearner) -> Figure:
        """Plot four test goals with one path for each episode; later episodes are darker."""
        from matplotlib.figure import Figure

        env = self.batch("test", range(4))
        recording = RecordingEnv(env)
        episodes = [
            [(recording.path(stage, task, at), float(stage.episode(at, env.horizon).reward[task, -1].sum()))
             for task in range(4)]
            for stage in learner.rollouts(recording)
            for at in range(stage.reward.shape[2] // env.horizon)
        ]  # fmt: skip
        figure = Figure(figsize=(13, 3.4), layout="constrained")
        arc = torch.linspace(0, torch.pi, 50)
        axes = figure.subplots(1, 4, sharex=True, sharey=True)
        shades = style.later(len(episodes))
        for task, ax in enumerate(axes):
            ax.plot(arc.cos(), arc.sin(), ":", color=style.TRUTH, lw=1, label="possible goals")
            for number, (shade, episode) in enumerate(zip(shades, episodes, strict=True), 1):
                path, _ = episode[task]
                name = f"episode {number}" if number in (1, len(episodes)) else None
                ax.plot(path[:, 0], path[:, 1], ".-", color=shade, lw=1, ms=3, label=name)
            goal = env.goals[task, 0].cpu()
            ax.plot(*goal, "*", color=style.GOAL, ms=11, label="goal, and the circle within which it pays")
            ax.plot(goal[0] + self.radius * (2 * arc).cos(), goal[1] + self.radius * (2 * arc).sin(), color=style.GOAL)
            returns = [episode[task][1] for episode in episodes]
            ax.set(xlim=(-1.45, 1.45), ylim=(-0.6, 1.45), aspect="equal", xlabel="x")
            ax.set_title(f"return {returns[0]:.1f}, in episode {len(returns)} {returns[-1]:.1f}")
        axes[0].set_ylabel("y")
        style.legend(figure, axes[0])
        figure.suptitle("Paths to hidden goals of the meta-test split; later episodes are darker")
        return figure


class Disc(Environment):
    """T goals; the state [T, E, 2] is the position."""

    is_deterministic: ClassVar[bool] = True

    def __init__(self, goals: Tensor, family: SparseNavigation, split: Split, indices: Sequence[int]) -> None:
        super().__init__(family.seed, split, indices, family.horizon, family.episodes)
        self.device, self.goals, self.radius = goals.device, goals[:, None], family.radius

    def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
        return self.goals.new_zeros(self.tasks, num_envs, 2)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        state = state + action.clamp(-1, 1) * TOP_SPEED
        distance = self.distance(state)
        near = distance <= self.radius
        return state, (1 - distance) * near, torch.zeros_like(near)

    def shaped(self, state: Tensor, reward: Tensor) -> Tensor:
        return -self.distance(state)

    def distance(self, state: Tensor) -> Tensor:
        """Return the distance from the goal, [T, E]."""
        return (state - self.goals).square().sum(-1).sqrt()
