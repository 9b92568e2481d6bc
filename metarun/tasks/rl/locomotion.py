"""MuJoCo robots that run in a direction, at a speed, or with a varied body."""

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
from metarun.tasks.rl.robots import ROBOTS, Physics
from metarun.tasks.rng import drawn, uniforms
from metarun.tasks.to_device import to_device
from metarun.types import NonNegative, Positive, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import RLLearner


class Variation:
    """The difference between the tasks of a robot: the reward or the body. Subclasses override one of the two."""

    held_out: bool = True
    """True if the splits share no task."""

    def goals(self, seed: int, split: Split, indices: Sequence[int]) -> NDArray[np.float64]:
        """Return the goal of each task, [T]."""
        return np.zeros(len(indices))

    def models(self, physics: Physics, seed: int, split: Split, indices: Sequence[int]) -> list[Any]:
        """Return the MuJoCo model of each task."""
        return [physics.model] * len(indices)

    def pay(self, speed: Tensor, goal: Tensor) -> Tensor:
        """Return the reward [T, E] for a forward ``speed`` [T, E] under goals ``goal`` [T, 1]."""
        return speed

    def wanted(self, goal: float) -> tuple[str, float | None]:
        """Return a task's name and its target speed, if it has one."""
        return "", None

    def protocol(self) -> dict[str, Any]:
        return {}


class Direction(Variation):
    """Running forward (even task numbers) or backward (odd ones); the reward is the speed in that direction.

    There are only two tasks, so all splits share them, as in the papers.
    """

    held_out = False

    def goals(self, seed: int, split: Split, indices: Sequence[int]) -> NDArray[np.float64]:
        return 1.0 - 2.0 * (np.asarray(indices) % 2)

    def pay(self, speed: Tensor, goal: Tensor) -> Tensor:
        return goal * speed

    def wanted(self, goal: float) -> tuple[str, float | None]:
        return "forward" if goal > 0 else "backward", None

    def protocol(self) -> dict[str, Any]:
        return {"varies": "direction", "tasks": 2, "held_out_tasks": False}


class Velocity(Variation):
    """Running at a target speed; the reward is minus the distance from it.

    Args:
        between: Smallest and largest target speed, uniform between them.
    """

    def __init__(self, *, between: Sequence[float]) -> None:
        ordered = len(between) == 2 and between[0] < between[1]
        require(ordered, f"task.varies.between={list(between)}: give two numbers, the lower first, such as [0.0, 2.0]")
        self.between = tuple(between)

    def goals(self, seed: int, split: Split, indices: Sequence[int]) -> NDArray[np.float64]:
        low, high = self.between
        return low + (high - low) * uniforms(seed, split, indices, 1)[:, 0]

    def pay(self, speed: Tensor, goal: Tensor) -> Tensor:
        return -(speed - goal).abs()

    def wanted(self, goal: float) -> tuple[str, float | None]:
        return f"speed {goal:.2f}", goal

    def protocol(self) -> dict[str, Any]:
        return {"varies": "velocity", "between": list(self.between)}


class Body(Variation):
    """Running forward with a varied body: Walker2DRandParams and HopperRandParams.

    Every mass, moment of inertia and friction coefficient is multiplied by 1.5^u and the damping of every joint by
    1.3^u, with a separate u ~ U[-``spread``, ``spread``] for each. Unlike in the published code, quantities that MuJoCo
    derives from them are recomputed.

    Args:
        spread: Largest exponent (3 in the published code).
    """

    BASES: ClassVar[dict[str, float]] = {
        "body_mass": 1.5,
        "body_inertia": 1.5,
        "dof_damping": 1.3,
        "geom_friction": 1.5,
    }

    def __init__(self, *, spread: NonNegative) -> None:
        self.spread = spread

    def models(self, physics: Physics, seed: int, split: Split, indices: Sequence[int]) -> list[Any]:
        shapes = {name: getattr(physics.model, name).shape for name in self.BASES}
        drawn = uniforms(seed, split, indices, sum(int(np.prod(shape)) for shape in shapes.values()))
        models = []
        for row in self.spread * (2 * drawn - 1):
            parts = np.split(row, np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1])
            named = zip(shapes.items(), parts, strict=True)
            models.append(physics.changed({name: self.BASES[name] ** u.reshape(shape) for (name, shape), u in named}))
        return models

    def protocol(self) -> dict[str, Any]:
        return {"varies": "body", "spread": self.spread}


class Locomotion(Task):
    """A MuJoCo robot (Todorov et al. 2012) that varies from task to task.

    Robots, observations and initial states are those of Gymnasium's HalfCheetah-v5 (17 observations), Ant-v5 (27:
    without contact forces), Walker2d-v5 (17) and Hopper-v5 (11). Actions are clipped to [-1, 1]. The reward of a step
    is

    - the mean forward speed while the action is held, as ``varies`` evaluates it: a direction or a target speed as in
      MAML (Finn et al. 2017, arXiv:1703.03400, section 5.3.2), or the forward speed of a varied body (Rothfuss et al.
      2019, arXiv:1810.06784, section 6);
    - minus ``control_cost`` times the squared norm of the clipped action, plus ``bonus``.

    Some published environments have further observations, and Ant has a contact cost of at most .04 a step, which is
    left out here. Returns are therefore close to the papers' but not identical.

    Args:
        seed: Seed of the tasks.
        robot: The robot.
        varies: What differs between the tasks: :class:`Direction`, :class:`Velocity` or :class:`Body`.
        control_cost: Weight of the action's squared norm.
        bonus: Reward added at every step.
        fall_ends: If true, an episode terminates when the robot falls (a cheetah never does).
        horizon: Steps after which an episode is truncated.
        episodes: Episodes of a trial.
        threads: Threads of the simulation; ``None``: one for each core.
    """

    kind: ClassVar[str] = "control"
    modality: ClassVar[str] = "vector"
    metric: ClassVar[str] = "return"
    simulated_on_host: ClassVar[bool] = True

    def __init__(
        self,
        seed: int,
        *,
        robot: Literal["half_cheetah", "ant", "walker2d", "hopper"],
        varies: Variation,
        control_cost: NonNegative,
        bonus: float,
        fall_ends: bool,
        horizon: Positive,
        episodes: Positive,
        threads: Positive | None,
    ) -> None:
        self.seed, self.robot, self.varies = seed, robot, varies
        self.control_cost, self.bonus, self.fall_ends = control_cost, bonus, fall_ends
        self.horizon, self.episodes = horizon, episodes
        self.held_out_val = varies.held_out
        self.physics = Physics(ROBOTS[robot], threads)
        seen = self.physics.size - 1 - self.physics.robot.hidden
        self.spec = Spec("control", self.modality, (seen,), self.physics.actions)

    def to(self, device: torch.device) -> Locomotion:
        require(device.type != "mps", "robots are simulated in float64, which mps lacks; use runner.device=cpu")
        return super().to(device)

    def goals(self, split: Split, indices: Sequence[int]) -> NDArray[np.float64]:
        """Return the target direction or speed of each task, [T]; 0 if it has none."""
        return self.varies.goals(self.seed, split, indices)

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> Robots:
        return Robots(self, split, indices)

    def protocol(self) -> dict[str, Any]:
        rewards = {"control_cost": self.control_cost, "bonus": self.bonus, "fall_ends": self.fall_ends}
        sizes = {"horizon": self.horizon, "episodes": self.episodes}
        return {"data": f"{self.robot} (MuJoCo, Gymnasium v5)", **self.varies.protocol(), **rewards, **sizes}

    def references(self, split: Split, indices: Sequence[int]) -> dict[str, float]:
        """Return trial returns from one simulated episode of each task: ``still`` applies no force, ``random`` normal
        ones.
        """
        env = Robots(self, split, indices, torch.device("cpu"))
        noise = env.generator()
        state = env.reset(2, noise)
        mask, total = torch.ones(env.tasks, 2, dtype=torch.bool), torch.zeros(env.tasks, 2)
        for _ in range(self.horizon):
            action = torch.randn(env.tasks, 2, self.physics.actions, generator=noise)
            action[:, 0] = 0
            state, reward, over = env.step(state, action, noise)
            total += reward * mask
            mask &= ~over
            if not mask.any():
                break
        still, random = (self.episodes * total.mean(0)).tolist()
        return {"still": still, "random": random}

    def picture(self, learner: RLLearner) -> Figure:
        """Plot the forward speed in the first and last episode, before and after adaptation, on a few test tasks."""
        from matplotlib.figure import Figure

        env = self.batch("test", range(4 if self.held_out_val else 2))
        stages = list(learner.rollouts(env))
        first, last = stages[0].episode(0, env.horizon), stages[-1].episode(-1, env.horizon)
        at = self.physics.positions - self.physics.robot.hidden
        seconds = self.physics.held * np.arange(self.horizon)
        figure = Figure(figsize=(1 + 3.4 * env.tasks, 3.7), layout="constrained")
        for task, ax in enumerate(figure.subplots(1, env.tasks, sharey=True, squeeze=False)[0]):
            for rollout, look, label in (
                (first, {"color": style.EARLY, "ls": "--"}, "before adaptation"),
                (last, {"color": style.LATE, "ls": "-"}, "after adaptation"),
            ):
                speed = rollout.observation[task, ..., at].cpu().masked_fill(~rollout.mask[task].cpu(), torch.nan)
                ax.plot(seconds, speed.T, color=look["color"], lw=0.4, alpha=0.25)
                ax.plot(seconds, speed.nanmean(0), lw=1.6, label=label, **look)
            name, speed_wanted = self.varies.wanted(float(env.goal[task]))
            if speed_wanted is not None:
                ax.axhline(speed_wanted, color=style.GIVEN, ls=":", label="wanted speed")
            ax.axhline(0, color="0.85", lw=0.8, zorder=0)
            ax.set(xlabel="time (s)", title=name or f"body {task + 1}")
        figure.axes[0].set_ylabel("forward speed (m/s)")
        style.legend(figure, figure.axes[0])
        figure.suptitle(
            f"{self.robot}, tasks of the meta-test split" + ("" if self.held_out_val else " (all there are)")
        )
        return figure


class Robots(Environment):
    """T tasks of a robot; the state [T, E, size] is MuJoCo's (time, positions, velocities) in float64.

    The simulation runs on the CPU: states and actions on another device are copied there and back at every step.
    """

    def __init__(
        self, family: Locomotion, split: Split, indices: Sequence[int], device: torch.device | None = None
    ) -> None:
        super().__init__(family.seed, split, indices, family.horizon, family.episodes)
        self.device = device or family.device
        self.family, self.physics, self.robot = family, family.physics, family.physics.robot
        self.goal = to_device(family.goals(split, indices), self.device)[:, None]
        self.models = family.varies.models(self.physics, family.seed, split, indices)
        self.first = self.physics.first.to(self.device)

    def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
        noise = torch.empty(self.tasks, num_envs, self.physics.size, dtype=torch.float64, device=self.device)
        drawn(noise, "uniform_", -self.robot.noise, self.robot.noise, generator=generator)
        if self.robot.gaussian:
            drawn(noise[..., 1 + self.physics.positions :], "normal_", 0, self.robot.noise, generator=generator)
        noise[..., 0] = 0
        return self.first + noise

    def observe(self, state: Tensor) -> Tensor:
        position, velocity = self.parts(state)
        velocity = velocity.clamp(-self.robot.top, self.robot.top)
        return torch.cat([position[..., self.robot.hidden :], velocity], -1).to(torch.get_default_dtype())

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        control = action.to(state.dtype).clamp(-1, 1)
        moved = self.advance(state, control)
        # MuJoCo resets a simulation that diverges to its description and time 0, which ends the episode here.
        valid = torch.isfinite(moved).all(-1) & (moved[..., 0] > state[..., 0])
        moved = torch.where(valid[..., None], moved, state)
        speed = (moved[..., 1] - state[..., 1]) / self.physics.held
        reward = self.family.varies.pay(speed, self.goal) - self.family.control_cost * control.square().sum(-1)
        over = ~(valid & self.robot.stands(*self.parts(moved))) if self.family.fall_ends else ~valid
        return moved, (reward + self.family.bonus).to(torch.get_default_dtype()), over

    def advance(self, state: Tensor, control: Tensor) -> Tensor:
        """Return the states after ``control`` [T, E, actions] was held; on the meta device, empty states."""
        if state.is_meta:
            return torch.empty_like(state)
        num_envs = state.shape[1]
        models = [model for model in self.models for _ in range(num_envs)]
        moved = self.physics.advance(models, state.flatten(0, 1).cpu(), control.flatten(0, 1).cpu())
        return moved.view_as(state).to(state.device)

    def parts(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Split a state into positions and velocities, [..., size] each."""
        position, velocity = state[..., 1:].split([self.physics.positions, self.physics.velocities], -1)
        return position, velocity
