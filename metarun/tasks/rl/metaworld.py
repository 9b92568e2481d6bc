"""Meta-World: a robot arm, fifty kinds of things to do with it, and where the goal is, which it is not told."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.errors import nearest, require
from metarun.tasks.record import DataRecord
from metarun.tasks.rl.gym import Frame, GymFamily, imported
from metarun.types import Positive, Split


class MetaWorld(GymFamily):
    """The benchmarks ML1, ML10 and ML45 of Meta-World (Yu et al. 2019, arXiv:1910.10897), version 3 of its simulators.

    ``ML1`` is one ``env`` with goals that differ, ML10 and ML45 are 10 and 45 environments to meta-train on and 5
    others to test on; 50 goals of each, drawn by the benchmark from ``goals_seed``. Meta-test has the benchmark's test
    tasks and nothing else has. The benchmark names none for validation: every fifth of its meta-train goals is kept for
    that, and not meta-trained on. The goal is hidden (zeros), the same in all ``episodes`` of a trial, and so is the
    start: these environments take no seed. ``success`` is told beside the return: the share of last episodes that
    reached the goal at any step.
    """

    modality: ClassVar[str] = "vector"

    def __init__(
        self,
        seed: int,
        *,
        benchmark: Literal["ML1", "ML10", "ML45"],
        env: str,
        goals_seed: int,
        horizon: Positive,
        episodes: Positive,
    ) -> None:
        self.seed, self.benchmark, self.env, self.goals_seed = seed, benchmark, env, goals_seed
        self.horizon, self.episodes = horizon, episodes
        metaworld = imported("metaworld", "task=rl/metaworld", "rl-metaworld")
        known = list(metaworld.ALL_V3_ENVIRONMENTS)
        require(env in known, f"task.env={env}: no environment of Meta-World{nearest(env, known)}")
        require(horizon <= 500, f"task.horizon={horizon}: an episode of Meta-World has at most 500 steps")
        made = drawn(benchmark, env if benchmark == "ML1" else None, goals_seed)
        self.classes = {**made.train_classes, **made.test_classes}
        train: dict[str, list[Any]] = {}
        for task in made.train_tasks:
            train.setdefault(task.env_name, []).append(task)
        self.tasks: dict[Split, list[Any]] = {
            "train": [task for goals in train.values() for i, task in enumerate(goals) if i % 5],
            "val": [task for goals in train.values() for task in goals[::5]],
            "test": list(made.test_tasks),
        }
        self.look()

    def sample(self, rng: np.random.Generator, split: Split) -> Any:
        """A task of the benchmark: an environment and a goal."""
        return self.tasks[split][int(rng.integers(len(self.tasks[split])))]

    def make(self, parameters: Any) -> Arm:
        return Arm(self.classes[parameters.env_name](render_mode="rgb_array"), parameters)

    def like(self, parameters: Any) -> str:
        return parameters.env_name

    def turn(self, simulator: Arm, parameters: Any) -> None:
        simulator.task = parameters

    def record(self) -> DataRecord:
        if self.benchmark == "ML1":  # one environment, whose goals are split
            return DataRecord(rule={"env": self.env, "goals_seed": self.goals_seed})
        names = {split: sorted({task.env_name for task in self.tasks[split]}) for split in ("train", "test")}
        return DataRecord(names)  # type: ignore[arg-type]

    def protocol(self) -> dict[str, Any]:
        env = {"env": self.env} if self.benchmark == "ML1" else {}
        sizes = {"goals_seed": self.goals_seed, "horizon": self.horizon, "episodes": self.episodes}
        return {"data": f"Meta-World {self.benchmark}", **env, **sizes}


@cache
def drawn(benchmark: str, env: str | None, seed: int) -> Any:
    """The benchmark with its goals; drawing these takes seconds."""
    import metaworld

    return getattr(metaworld, benchmark)(*([env] if env else []), seed=seed)


class Arm:
    """An environment of Meta-World that always begins with the same goal."""

    render_mode = "rgb_array"

    def __init__(self, simulator: Any, task: Any) -> None:
        self.simulator, self.task = simulator, task
        self.observation_space, self.action_space = simulator.observation_space, simulator.action_space

    def reset(self, seed: int) -> tuple[NDArray[np.float64], dict[str, Any]]:
        self.simulator.set_task(self.task)
        return self.simulator.reset()

    def step(self, action: Any) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        return self.simulator.step(action)

    def render(self) -> Frame:
        return self.simulator.render()
