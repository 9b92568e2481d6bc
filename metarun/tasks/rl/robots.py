"""MuJoCo as a function: many copies of a robot advance at once, each from a state that is given."""

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
    """A robot of Gymnasium's, as in the fifth version of its environment (Towers et al. 2024, arXiv:2407.17032)."""

    file: str
    """Its description, among the files that Gymnasium ships."""
    skip: int
    """Steps of the physics for which an action is held."""
    hidden: int
    """Leading positions that are not observed: where on the ground it is."""
    noise: float
    """Positions begin within this of the description's, uniform."""
    gaussian: bool
    """Whether velocities begin normal, with this deviation, or uniform too."""
    top: float
    """Velocities are observed up to this."""
    stands: Callable[[Tensor, Tensor], Tensor]
    """(positions, velocities), each [..., size] -> whether it has not fallen, [...]."""


ROBOTS = {
    "half_cheetah": Robot("half_cheetah.xml", 5, 1, 0.1, True, float("inf"), everywhere),
    "ant": Robot("ant.xml", 5, 2, 0.1, True, float("inf"), ant_stands),
    "walker2d": Robot("walker2d_v5.xml", 4, 1, 5e-3, False, 10.0, walker_stands),
    "hopper": Robot("hopper.xml", 4, 1, 5e-3, False, 10.0, hopper_stands),
}


def needed(package: str) -> str:
    """The one line for someone who lacks ``package``."""
    return f"simulated robots need {package}: pip install 'metarun[rl]'"


def description(file: str) -> Path:
    """One of Gymnasium's files, found without importing it."""
    found = importlib.util.find_spec("gymnasium")
    if found is None or found.origin is None:
        raise UserError(needed("gymnasium"))
    path = Path(found.origin).parent / "envs" / "mujoco" / "assets" / file
    require(path.is_file(), f"the installed gymnasium has no {file}; pip install 'gymnasium>=1.1'")
    return path


class Physics:
    """A robot's model, and ``threads`` in which copies of it advance (``None``: as many as there are cores).

    A state is ``[time, positions, velocities]``, in float64, and what follows from it depends on nothing else: on no
    step before, on no other copy and on no thread. To that end the contact solver starts anew with every action,
    where MuJoCo's own loop begins with the accelerations of the step before, which are no part of the state and which
    the pool does not tell; both stop at the same tolerance (1e-8). Within an action it starts from the step before.
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
        """Seconds that an action takes."""
        self.first = torch.from_numpy(np.concatenate([[1.0], self.model.qpos0, np.zeros(self.velocities)]))
        """The state that the description gives. Its clock is ahead of one that MuJoCo has set back to 0."""

    def changed(self, factors: dict[str, np.ndarray[Any, Any]]) -> Any:
        """A copy of the model in which arrays are multiplied, with what MuJoCo derives from them derived anew."""
        import copy

        model = copy.copy(self.model)
        for name, factor in factors.items():
            getattr(model, name)[:] *= factor
        self.mujoco.mj_setConst(model, self.mujoco.MjData(model))
        return model

    @cached_property
    def pool(self) -> tuple[Any, list[Any]]:
        """Threads that wait for work, and a place for each to work in. One thread is the caller's own."""
        from mujoco.rollout import Rollout

        places = [self.mujoco.MjData(self.model) for _ in range(self.threads)]
        return Rollout(nthread=self.threads if self.threads > 1 else 0), places

    def advance(self, models: Sequence[Any], state: Tensor, control: Tensor) -> Tensor:
        """The states [N, size] after ``control`` [N, actions] was held, one model each."""
        rollout, places = self.pool
        skip = self.robot.skip
        held = control[:, None].expand(-1, skip, -1).contiguous().numpy()
        steps = np.empty((len(state), skip, self.size))
        rollout.rollout(models, places, state.contiguous().numpy(), held, skip_checks=True, nstep=skip, state=steps)
        return torch.from_numpy(steps[:, -1].copy())
