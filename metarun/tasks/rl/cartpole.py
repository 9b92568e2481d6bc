"""A pole balanced on a cart, with masses, lengths and forces that are not told."""

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
"""Seconds."""
WIDEST = 2.4
"""Where the track ends, to either side."""
STEEPEST = 12 * 2 * pi / 360
"""The angle at which the pole counts as fallen."""


class CartPole(Task):
    """Cart and pole (Barto, Sutton & Anderson 1983), every step as in Gymnasium's CartPole-v1, physics by task.

    Ranges [least, greatest], of which each task draws its own: ``gravity``, ``cart_mass``, ``pole_mass``,
    ``half_length`` of the pole, ``force`` of a push (Gymnasium's values: 9.8, 1, .1, .5, 10); see
    :class:`~metarun.tasks.rl.physics.Constants`, also for ``extrapolate``. In a share ``swapped`` of the tasks the two
    actions are exchanged, so that no single policy balances in all. A step pays 1, the last too; an episode ends when
    the pole falls or the cart leaves the track, or after ``horizon`` steps. The observation is position and angle and
    their speeds.
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
        """Trial returns: ``bound``, none can be above; of a ``controller`` told which action is which; ``random``.

        The last two are simulated, five episodes a task. The controller pushes by the sign of a weighted sum of what is
        seen.
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
        """The pole's angle over time, in four test tasks."""
        return traces(self, learner, lambda seen: seen[:, 2], "angle of the pole")


class Carts(Environment):
    """T carts; the state is position, speed, angle and angular speed [T, E, 4]."""

    def __init__(self, family: CartPole, split: Split, indices: Sequence[int]) -> None:
        super().__init__(family.seed, split, indices, family.horizon, family.episodes)
        self.device = family.device
        constants = family.constants.tensors(family.seed, split, indices, self.device)
        self.gravity, self.pole_mass, self.length = (constants[n] for n in ("gravity", "pole_mass", "half_length"))
        self.total_mass = self.pole_mass + constants["cart_mass"]
        force = constants["force"]
        self.force = force * signs(family.swapped, family.seed, split, indices, force)
        """[T, 1], of action 1; that of action 0 is the opposite."""

    def reset(self, copies: int, generator: torch.Generator | None) -> Tensor:
        return drawn(self.force.new_empty(self.tasks, copies, 4), "uniform_", -0.05, 0.05, generator=generator)

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
