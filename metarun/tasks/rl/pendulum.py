"""Pendulum swing-up with hidden mass, length, gravity and motor."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Spec
from metarun.tasks.rl.base import Environment
from metarun.tasks.rl.physics import Constants, played, signs, traces
from metarun.tasks.rng import drawn
from metarun.types import Fraction, NonNegative, Positive, Rate, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import RLLearner

STEP = 0.05
"""Time step in seconds."""
TOP_SPEED = 8
"""Largest angular speed in radians a second."""


class Pendulum(Task):
    """The torque-limited pendulum with the dynamics of Gymnasium's Pendulum-v1 and varied physics.

    A step costs the squared angle from upright, .1 times the squared speed and .001 times the squared torque. An
    episode begins at a random angle and speed. The observation is cosine and sine of the angle, and the speed. Each
    task draws its physical constants from ranges [least, greatest]; see :class:`~metarun.tasks.rl.physics.Constants`.

    Args:
        seed: Seed of the tasks.
        gravity: Gravity in m/s^2 (Gymnasium: 10).
        mass: Mass in kg (Gymnasium: 1).
        length: Length in m (Gymnasium: 1).
        torque: Largest torque in N m, at which actions are clipped (Gymnasium: 2).
        extrapolate: Distance of meta-test constants from the ranges; 0 for the same ranges in all splits.
        swapped: Share of the tasks in which the motor turns the other way.
        horizon: Steps of an episode.
        episodes: Episodes of a trial.
    """

    kind: ClassVar[str] = "control"
    modality: ClassVar[str] = "vector"
    metric: ClassVar[str] = "return"

    def __init__(
        self,
        seed: int,
        *,
        gravity: Sequence[Rate],
        mass: Sequence[Rate],
        length: Sequence[Rate],
        torque: Sequence[Rate],
        extrapolate: NonNegative,
        swapped: Fraction,
        horizon: Positive,
        episodes: Positive,
    ) -> None:
        self.seed, self.horizon, self.episodes, self.swapped = seed, horizon, episodes, swapped
        ranges = {"gravity": gravity, "mass": mass, "length": length, "torque": torque}
        self.constants = Constants(ranges, extrapolate)
        self.spec = Spec("control", self.modality, (3,), 1)

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> Pendulums:
        return Pendulums(self, split, indices)

    def protocol(self) -> dict[str, Any]:
        sizes = {"swapped": self.swapped, "horizon": self.horizon, "episodes": self.episodes}
        return {"data": "Pendulum", **self.constants.protocol(), **sizes}

    def references(self, split: Split, indices: Sequence[int]) -> dict[str, float]:
        """Return trial returns, simulated with five episodes a task: ``controller`` knows the physics, ``still`` does
        nothing.

        The controller brings the pendulum to the energy of the upright position and balances it there (Astrom & Furuta
        2000). It is good but not optimal. No return exceeds 0.
        """
        env = self.batch(split, indices)
        return {
            "controller": played(env, env.swing_up, 5),
            "still": played(env, lambda state, _: torch.zeros_like(state[..., :1]), 5),
        }

    def picture(self, learner: RLLearner) -> Figure:
        """Plot the height of the pendulum's end over time in four test tasks."""
        return traces(self, learner, lambda seen: seen[:, 0], "height of the end (of its length)")


class Pendulums(Environment):
    """T pendulums; the state [T, E, 2] is the angle from upright and the angular speed."""

    is_deterministic: ClassVar[bool] = True

    def __init__(self, family: Pendulum, split: Split, indices: Sequence[int]) -> None:
        super().__init__(family.seed, split, indices, family.horizon, family.episodes)
        self.device = family.device
        constants = family.constants.tensors(family.seed, split, indices, self.device)
        self.gravity, self.mass, self.length, self.torque = constants.values()
        self.way = signs(family.swapped, family.seed, split, indices, self.torque)

    def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
        unit = drawn(self.torque.new_empty(self.tasks, num_envs, 2), "uniform_", -1, 1, generator=generator)
        return unit * unit.new_tensor([pi, 1.0])

    def observe(self, state: Tensor) -> Tensor:
        angle, speed = state.unbind(-1)
        return torch.stack([angle.cos(), angle.sin(), speed], -1)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        angle, speed = state.unbind(-1)
        turn = torch.maximum(torch.minimum(self.way * action[..., 0], self.torque), -self.torque)
        away = upright(angle)
        cost = away.square() + 0.1 * speed.square() + 0.001 * turn.square()
        pull = 3 * self.gravity / (2 * self.length) * angle.sin() + 3 / (self.mass * self.length.square()) * turn
        speed = (speed + pull * STEP).clamp(-TOP_SPEED, TOP_SPEED)
        state = torch.stack([angle + speed * STEP, speed], -1)
        return state, -cost, torch.zeros_like(angle, dtype=torch.bool)

    def swing_up(self, state: Tensor, _: torch.Generator | None) -> Tensor:
        """Return torques [T, E, 1] that raise the energy to that of the upright rest position and balance there."""
        angle, speed = upright(state[..., 0]), state[..., 1]
        inertia, weight = self.mass * self.length.square() / 3, self.mass * self.gravity * self.length / 2
        lacking = weight * (1 - angle.cos()) - 0.5 * inertia * speed.square()
        swing = torch.where(lacking * speed >= 0, self.torque, -self.torque)
        # Critically damped, twice as stiff as gravity.
        hold = -3 * weight * angle - 2 * (2 * weight * inertia).sqrt() * speed
        near = hold.abs() < 2 * self.torque
        return (self.way * torch.where(near & (angle.abs() < 1), hold, swing))[..., None]


def upright(angle: Tensor) -> Tensor:
    """Map an angle to the range from -pi to pi."""
    return (angle + pi) % (2 * pi) - pi
