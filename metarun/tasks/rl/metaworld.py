"""Meta-World: a robot arm in fifty kinds of environments with hidden goals."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.errors import nearest, require
from metarun.extras import imported
from metarun.tasks.record import DataRecord
from metarun.tasks.rl.gym import Frame, GymFamily
from metarun.types import Positive, Split


class MetaWorld(GymFamily):
    """The benchmarks ML1, ML10 and ML45 of Meta-World (Yu et al. 2019, arXiv:1910.10897), version 3 of its simulators.

    ML1 is one environment with varied goals. ML10 and ML45 meta-train on 10 and 45 environments and test on 5 others,
    with 50 goals each. The meta-test tasks are the benchmark's test tasks. The benchmark has no validation tasks: every
    fifth meta-train goal is held out for validation. Goals are hidden (zeros). Goal and start stay the same in all
    episodes of a trial. The metric ``success`` is the share of last episodes that reached the goal at any step.

    Args:
        seed: Seed of the tasks.
        benchmark: The benchmark.
        env: Name of the environment in ML1; ignored by the others.
        goals_seed: Seed with which the benchmark draws the goals.
        horizon: Steps after which an episode is truncated, at most 500.
        episodes: Episodes of a trial.
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
        require(env in known, f"task.env={env}: Meta-World has no such environment{nearest(env, known)}")
        require(horizon <= 500, f"task.horizon={horizon}: an episode of Meta-World has at most 500 steps")
        made = load_benchmark(benchmark, env if benchmark == "ML1" else None, goals_seed)
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
        """Draw a task of the benchmark: an environment and a goal."""
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
def load_benchmark(benchmark: str, env: str | None, seed: int) -> Any:
    """Return the benchmark with its goals, cached because drawing them takes seconds."""
    import metaworld

    return getattr(metaworld, benchmark)(*([env] if env else []), seed=seed)


class Arm:
    """An environment of Meta-World with a fixed goal."""

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
