"""Benchmark of rollout collection in environment steps per second, against MuJoCo's thread pool and Gymnasium."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from rich.table import Table

from metarun.algorithms.functional import call_with
from metarun.algorithms.rl.collect import Act, collect
from metarun.bench.speeds import Speed, sample, speed_table
from metarun.config.build import construct
from metarun.config.compose import compose
from metarun.errors import UserError
from metarun.tasks.rl.robots import needed

BASE = "MuJoCo's pool"
TASKS, NUM_ENVS = 40, 20
"""Tasks per meta-batch and environments per task in the published HalfCheetah experiments."""
VECTOR_SIZE = 64
"""Number of environments in a Gymnasium vector environment."""


def rollouts(
    rounds: int, threads: int, tasks: int = TASKS, num_envs: int = NUM_ENVS, vector_size: int = VECTOR_SIZE
) -> list[Speed]:
    """Measure the speed of rollout collection.

    Learners compute in one thread.

    Args:
        rounds: Number of rounds.
        threads: Number of simulation threads.
        tasks: Tasks per meta-batch.
        num_envs: Environments per task.
        vector_size: Environments in a Gymnasium vector environment.

    Raises:
        UserError: Gymnasium is not installed.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ExitStack() as stack:
            # Gymnasium comes first because it forks processes, which should happen before threads start.
            speeds = [
                *(stack.enter_context(gymnasium(kind, vector_size)) for kind in ("sync", "async")),
                *cheetah(tasks, num_envs, threads),
                *navigation(tasks, num_envs),
            ]
            sample(speeds, rounds)
        return speeds
    finally:
        torch.set_num_threads(before)


@contextmanager
def gymnasium(kind: str, vector_size: int, steps: int = 20) -> Iterator[Speed]:
    """Prepare a Gymnasium vector environment of a ``kind`` (``sync`` or ``async``) with random actions."""
    try:
        import gymnasium
    except ImportError:
        raise UserError(needed("gymnasium")) from None
    env = gymnasium.make_vec("HalfCheetah-v5", num_envs=vector_size, vectorization_mode=kind)
    try:
        env.reset(seed=0)

        def run() -> int:
            for _ in range(steps):
                env.step(env.action_space.sample())
            return steps * vector_size

        about = f"HalfCheetah-v5, {vector_size} environments" + (", one process each" if kind == "async" else "")
        yield Speed(f"Gymnasium, {kind}", about, run)
    finally:
        env.close()


def cheetah(tasks: int, num_envs: int, threads: int, horizon: int = 20) -> Iterator[Speed]:
    """Prepare MuJoCo's thread pool alone, and metarun's collector on top of it with one policy per task."""
    words = ["task=rl/half_cheetah_dir", f"task.horizon={horizon}", f"task.threads={threads}"]
    config = compose([*words, "model.hidden=[64,64]", "model.activation=tanh"]).config
    task = construct(config["task"], seed=0)
    env, physics = task.batch("train", range(tasks)), task.physics
    model = construct(config["model"], spec=task.spec)
    parameters = {name: p.detach().expand(tasks, *p.shape) for name, p in model.named_parameters()}
    act: Act = lambda x: call_with(parameters, model, x.observation)  # noqa: E731
    size = f"{tasks} x {num_envs} cheetahs, {threads} thread{'s'[: threads > 1]}"

    def run_pool() -> int:
        pool, places = physics.pool
        noise = np.random.default_rng(0)
        state = env.reset(num_envs, env.generator()).flatten(0, 1).numpy()
        for _ in range(horizon):
            actions = noise.uniform(-1, 1, (len(state), 1, physics.actions)).repeat(physics.robot.skip, 1)
            state = pool.rollout(physics.model, places, state, actions)[0][:, -1]
        return horizon * tasks * num_envs

    def run_collector() -> int:
        collect(env, task.spec, act, num_envs, 1, env.generator())
        return horizon * tasks * num_envs

    yield Speed(BASE, f"{size}, random actions: no observation, no reward, no policy", run_pool)
    yield Speed("metarun, cheetah", f"{size}: the collector, a policy of 64 and 64 units for each task", run_collector)


def navigation(tasks: int, num_envs: int) -> Iterator[Speed]:
    """Prepare metarun's collector on 2D navigation, with random actions and with one policy per task."""
    config = compose(["task=rl/navigation"]).config
    task = construct(config["task"], seed=0)
    env = task.batch("train", range(tasks))
    model = construct(config["model"], spec=task.spec)
    parameters = {name: p.detach().expand(tasks, *p.shape) for name, p in model.named_parameters()}
    acts: dict[str, Act] = {
        "random actions": lambda x: x.observation.new_zeros(*x.previous_reward.shape, 4),
        "a policy of 100 and 100 units for each task": lambda x: call_with(parameters, model, x.observation),
    }
    for name, act in acts.items():

        def run(act: Act = act) -> int:
            collect(env, task.spec, act, num_envs, 1, env.generator())
            return env.horizon * tasks * num_envs

        short = "metarun, navigation" + (", policy" if "policy" in name else "")
        yield Speed(short, f"{tasks} x {num_envs} points in the plane, one thread: the collector, {name}", run)


def rollouts_table(speeds: list[Speed]) -> Table:
    """Return a table of speeds, those of cheetahs relative to MuJoCo's thread pool too."""
    related = [speed for speed in speeds if "navigation" not in speed.name]
    return speed_table("rollouts   steps a second", speeds, BASE, related)
