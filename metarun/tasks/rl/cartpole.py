"""Cart-pole balancing with hidden masses, lengths and forces."""

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

STEP = 0.02
"""Time step in seconds."""
WIDEST = 2.4
"""Distance from the centre at which the track ends, in metres."""
STEEPEST = 12 * 2 * pi / 360
"""Angle at which the pole counts as fallen, in radians."""


class CartPole(Task):
    """Cart-pole balancing (Barto, Sutton & Anderson 1983) with the dynamics of Gymnasium's CartPole-v1 and varied
    physics.

    Every step pays 1, including the last. An episode terminates when the pole falls or the cart leaves the track. The
    observation is position, speed, angle and angular speed. Each task draws its physical constants from ranges [least,
    greatest]; see :class:`~metarun.tasks.rl.physics.Constants`.

    Args:
        seed: Seed of the tasks.
        gravity: Gravity in m/s^2 (Gymnasium: 9.8).
        cart_mass: Mass of the cart in kg (Gymnasium: 1).
        pole_mass: Mass of the pole in kg (Gymnasium: .1).
        half_length: Half of the pole's length in m (Gymnasium: .5).
        force: Force of a push in N (Gymnasium: 10).
        extrapolate: Distance of meta-test constants from the ranges; 0 for the same ranges in all splits.
        swapped: Share of the tasks in which the two actions are exchanged, so that no single policy solves all tasks.
        horizon: Steps after which an episode is truncated.
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
        cart_mass: Sequence[Rate],
        pole_mass: Sequence[Rate],
        half_length: Sequence[Rate],
        force: Sequence[Rate],
        extrapolate: NonNegative,
        swapped: Fraction,
        horizon: Positive,
        episodes: Positive,
    ) -> None:
        self.seed, self.horizon, self.episodes, self.swapped = seed, horizon, episodes, swapped
        ranges = {"gravity": gravity, "cart_mass": cart_mass, "pole_mass": pole_mass, "half_length": half_length}
        self.constants = Constants({**ranges, "force": force}, extrapolate)
        self.spec = Spec("control", self.modality, (4,), 2, discrete_actions=True)

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> Carts:
        return Carts(self, split, indices)

    def protocol(self) -> dict[str, Any]:
        sizes = {"swapped": self.swapped, "horizon": self.horizon, "episodes": self.episodes}
        return {"data": "CartPole", **self.constants.protocol(), **sizes}

    def references(self, split: Split, indices: Sequence[int]) -> dict[str, float]:
        """Return trial returns: an upper ``bound``, a ``controller`` that knows the direction of the actions, and
        ``random``.

        The last two are simulated, five episodes a task. The controller pushes by the sign of a weighted sum of the
        state.
        """
        env = self.batch(split, indices)

        def controller(state: Tensor, _: torch.Generator | None) -> Tensor:
            lean = state @ state.new_tensor([0.1, 0.35, 2.0, 0.6])
            return (lean * env.force > 0).long()

        def random(state: Tensor, generator: torch.Generator | None) -> Tensor:
            return torch.randint(2, state.shape[:2], generator=generator, device=state.device)

        return {
            "bound": float(self.horizon * self.episodes),
            "controller": played(env, controller, 5),
            "random": played(env, random, 5),
        }

    def picture(self, learner: RLLearner) -> Figure:
        """Plot the pole's angle over time in four test tasks."""
        return traces(self, learner, lambda seen: seen[:, 2], "angle of the pole (rad)")


class Carts(Environment):
    """T carts; the state [T, E, 4] is position, speed, angle and angular speed."""

    is_deterministic: ClassVar[bool] = True

    def __init__(self, family: CartPole, split: Split, indices: Sequence[int]) -> None:
        super().__init__(family.seed, split, indices, family.horizon, family.episodes)
        self.device = family.device
        constants = family.constants.tensors(family.seed, split, indices, self.device)
        self.gravity, self.pole_mass, self.length = (constants[n] for n in ("gravity", "pole_mass", "half_length"))
        self.total_mass = self.pole_mass + constants["cart_mass"]
        force = constants["force"]
        self.force = force * signs(family.swapped, family.seed, split, indices, force)
        """Force of action 1, [T, 1]; action 0 has the opposite force."""

    def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
        return drawn(self.force.new_empty(self.tasks, num_envs, 4), "uniform_", -0.05, 0.05, generator=generator)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        x, speed, angle, spin = state.unbind(-1)
        push = torch.where(action == 1, self.force, -self.force)
        cos, sin = angle.cos(), angle.sin()
        push = (push + self.pole_mass * self.length * spin.square() * sin) / self.total_mass
        turn = self.gravity * sin - cos * push
        turn = turn / (self.length * (4 / 3 - self.pole_mass * cos.square() / self.total_mass))
        pull = push - self.pole_mass * self.length * turn * cos / self.total_mass
        x, angle = x + STEP * speed, angle + STEP * spin
        state = torch.stack([x, speed + STEP * pull, angle, spin + STEP * turn], -1)
        return state, torch.ones_like(x), (x.abs() > WIDEST) | (angle.abs() > STEEPEST)
