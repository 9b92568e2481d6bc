"""MuJoCo as a pure function: many environments of a robot advance at once, each from a given state."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarun.errors import UserError, require


def everywhere(position: Tensor, velocity: Tensor) -> Tensor:
    return torch.ones_like(position[..., 0], dtype=torch.bool)


def ant_stands(position: Tensor, velocity: Tensor) -> Tensor:
    return (position[..., 2] >= 0.2) & (position[..., 2] <= 1.0)


def walker_stands(position: Tensor, velocity: Tensor) -> Tensor:
    height, angle = position[..., 1], position[..., 2]
    return (height > 0.8) & (height < 2.0) & (angle.abs() < 1.0)


def hopper_stands(position: Tensor, velocity: Tensor) -> Tensor:
    height, angle = position[..., 1], position[..., 2]
    small = (position[..., 2:].abs() < 100).all(-1) & (velocity.abs() < 100).all(-1)
    return (height > 0.7) & (angle.abs() < 0.2) & small


@dataclass(frozen=True)
class Robot:
    """A robot of Gymnasium's version 5 environments (Towers et al. 2024, arXiv:2407.17032).

    Attributes:
        file: Name of its description among the files that Gymnasium ships.
        skip: Physics steps for which an action is held.
        hidden: Number of leading positions that are not observed (the location on the ground).
        noise: Initial positions differ from the description by uniform noise up to this.
        gaussian: True if initial velocities are normal with deviation ``noise``, false if uniform up to it.
        top: Observed velocities are clipped at this.
        stands: Function (positions, velocities), [..., size] each -> bool [...], false once the robot has fallen.
    """

    file: str
    skip: int
    hidden: int
    noise: float
    gaussian: bool
    top: float
    stands: Callable[[Tensor, Tensor], Tensor]


ROBOTS = {
    "half_cheetah": Robot("half_cheetah.xml", 5, 1, 0.1, True, float("inf"), everywhere),
    "ant": Robot("ant.xml", 5, 2, 0.1, True, float("inf"), ant_stands),
    "walker2d": Robot("walker2d_v5.xml", 4, 1, 5e-3, False, 10.0, walker_stands),
    "hopper": Robot("hopper.xml", 4, 1, 5e-3, False, 10.0, hopper_stands),
}


def needed(package: str) -> str:
    """Return the message for a missing ``package``."""
    return f"simulated robots need {package}: pip install 'metarun[rl]'"


def description(file: str) -> Path:
    """Return the path of one of Gymnasium's model files without importing Gymnasium."""
    found = importlib.util.find_spec("gymnasium")
    if found is None or found.origin is None:
        raise UserError(needed("gymnasium"))
    path = Path(found.origin).parent / "envs" / "mujoco" / "assets" / file
    require(path.is_file(), f"the installed gymnasium has no {file}; pip install 'gymnasium>=1.1'")
    return path


class Physics:
    """A robot's model and the threads that simulate it.

    A state is ``[time, positions, velocities]`` in float64, and the next state depends on the state and the action
    only: not on earlier steps, other environments or the thread. For this the contact solver starts from zero with
    every action, whereas MuJoCo's own loop warm-starts it with the accelerations of the previous step, which are not
    part of the state. Both stop at the same tolerance (1e-8). Within an action the solver is warm-started.

    Args:
        robot: The robot.
        threads: Number of threads; ``None``: one for each core.
    """

    def __init__(self, robot: Robot, threads: int | None) -> None:
        try:
            import mujoco
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == "mujoco"
            raise UserError(needed("mujoco") + ("" if missing else f" ({error})")) from None
        self.mujoco, self.robot = mujoco, robot
        self.model = mujoco.MjModel.from_xml_path(str(description(robot.file)))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = threads or cores
        self.positions, self.velocities, self.actions = self.model.nq, self.model.nv, self.model.nu
        self.size = 1 + self.positions + self.velocities
        self.held = self.model.opt.timestep * robot.skip
        """Duration of an action in seconds."""
        self.first = torch.from_numpy(np.concatenate([[1.0], self.model.qpos0, np.zeros(self.velocities)]))
        """Initial state of the description, at time 1; time 0 shows that MuJoCo has reset a diverged simulation."""

    def changed(self, factors: dict[str, np.ndarray[Any, Any]]) -> Any:
        """Return a copy of the model with arrays multiplied by ``factors`` and derived quantities recomputed."""
        import copy

        model = copy.copy(self.model)
        for name, factor in factors.items():
            getattr(model, name)[:] *= factor
        self.mujoco.mj_setConst(model, self.mujoco.MjData(model))
        return model

    @cached_property
    def pool(self) -> tuple[Any, list[Any]]:
        """The simulation threads, and one ``MjData`` for each. A single thread is the caller's own."""
        from mujoco.rollout import Rollout

        places = [self.mujoco.MjData(self.model) for _ in range(self.threads)]
        return Rollout(nthread=self.threads if self.threads > 1 else 0), places

    def advance(self, models: Sequence[Any], state: Tensor, control: Tensor) -> Tensor:
        """Return the states [N, size] after ``control`` [N, actions] was held, given one model each."""
        rollout, places = self.pool
        skip = self.robot.skip
        held = control[:, None].expand(-1, skip, -1).contiguous().numpy()
        steps = np.empty((len(state), skip, self.size))
        rollout.rollout(models, places, state.contiguous().numpy(), held, skip_checks=True, nstep=skip, state=steps)
        return torch.from_numpy(steps[:, -1].copy())
