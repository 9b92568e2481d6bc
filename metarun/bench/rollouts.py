"""How many steps a second: the collector of rollouts beside what it is built on and what others use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table

from metarun.algorithms.functional import call_with
from metarun.algorithms.rl.collect import Act, collect
from metarun.config.build import construct
from metarun.config.compose import compose
from metarun.errors import UserError
from metarun.tasks.rl.robots import needed

BASE = "MuJoCo's pool"
TASKS, COPIES = 40, 20
"""The published meta-batch of the cheetah's tasks."""
VECTOR = 64
"""Environments in one of Gymnasium's vectors."""


@dataclass
class Speed:
    """Steps a second of one way to take them, one sample a round."""

    name: str
    about: str
    run: Callable[[], int]
    """Takes some steps; how many."""
    samples: list[float] = field(default_factory=list)

    def ratios(self, base: Speed) -> list[float]:
        """This one's speed over ``base``'s, round by round."""
        return [own / other for own, other in zip(self.samples, base.samples, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "what": self.about, "steps_per_s": self.samples, "median": median(self.samples)}


def rollouts(rounds: int, threads: int, tasks: int = TASKS, copies: int = COPIES, vector: int = VECTOR) -> list[Speed]:
    """Every way in turn in each of ``rounds``, after warming up; simulations in ``threads``, learners in one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ExitStack() as stack:
            # Gymnasium's first: its processes are forked, which is best done before there are threads.
            speeds = [
                *(stack.enter_context(gymnasium(kind, vector)) for kind in ("sync", "async")),
                *cheetah(tasks, copies, threads),
                *navigation(tasks, copies),
            ]
            for number in range(rounds + 1):
                for speed in speeds:
                    start = time.perf_counter()
                    steps = speed.run()
                    if number:
                        speed.samples.append(steps / (time.perf_counter() - start))
        return speeds
    finally:
        torch.set_num_threads(before)


@contextmanager
def gymnasium(kind: str, vector: int, steps: int = 20) -> Iterator[Speed]:
    """Gymnasium's vectors of environments, random actions."""
    try:
        import gymnasium
    except ImportError:
        raise UserError(needed("gymnasium")) from None
    env = gymnasium.make_vec("HalfCheetah-v5", num_envs=vector, vectorization_mode=kind)
    try:
        env.reset(seed=0)

        def run() -> int:
            for _ in range(steps):
                env.step(env.action_space.sample())
            return steps * vector

        about = f"HalfCheetah-v5, {vector} environments" + (", a process each" if kind == "async" else "")
        yield Speed(f"Gymnasium, {kind}", about, run)
    finally:
        env.close()


def cheetah(tasks: int, copies: int, threads: int, horizon: int = 20) -> Iterator[Speed]:
    """MuJoCo's pool of threads alone, and the collector that works on it, with a policy of each task's own."""
    words = ["task=rl/half_cheetah_dir", f"task.horizon={horizon}", f"task.threads={threads}"]
    config = compose([*words, "model.hidden=[64,64]", "model.activation=tanh"]).config
    task = construct(config["task"], seed=0)
    env, physics = task.batch("train", range(tasks)), task.physics
    model = construct(config["model"], spec=task.spec)
    parameters = {name: p.detach().expand(tasks, *p.shape) for name, p in model.named_parameters()}
    act: Act = lambda percept: call_with(parameters, model, percept.observation)  # noqa: E731
    size = f"{tasks} x {copies} cheetahs, {threads} thread{'s'[: threads > 1]}"

    def bare() -> int:
        pool, places = physics.pool
        noise = np.random.default_rng(0)
        state = env.reset(copies, env.generator()).flatten(0, 1).numpy()
        for _ in range(horizon):
            held = noise.uniform(-1, 1, (len(state), 1, physics.actions)).repeat(physics.robot.skip, 1)
            state = pool.rollout(physics.model, places, state, held)[0][:, -1]
        return horizon * tasks * copies

    def collected() -> int:
        collect(env, task.spec, act, copies, 1, env.generator())
        return horizon * tasks * copies

    yield Speed(BASE, f"{size}, random actions: no observation, no reward, no policy", bare)
    yield Speed("metarun, cheetah", f"{size}: the collector, a policy of 64 and 64 units for each task", collected)


def navigation(tasks: int, copies: int) -> Iterator[Speed]:
    """The collector on the plane, with random actions and with a policy of each task's own."""
    config = compose(["task=rl/navigation"]).config
    task = construct(config["task"], seed=0)
    env = task.batch("train", range(tasks))
    model = construct(config["model"], spec=task.spec)
    parameters = {name: p.detach().expand(tasks, *p.shape) for name, p in model.named_parameters()}
    acts: dict[str, Act] = {
        "random actions": lambda percept: percept.observation.new_zeros(*percept.reward.shape, 4),
        "a policy of 100 and 100 units for each task": lambda percept: call_with(
            parameters, model, percept.observation
        ),
    }
    for name, act in acts.items():

        def run(act: Act = act) -> int:
            collect(env, task.spec, act, copies, 1, env.generator())
            return env.horizon * tasks * copies

        short = "metarun, navigation" + (", policy" if "policy" in name else "")
        yield Speed(short, f"{tasks} x {copies} points in the plane, one thread: the collector, {name}", run)


def speed_table(speeds: list[Speed]) -> Table:
    """Medians over rounds, and what they are of MuJoCo's own pool's in the same round."""
    result = Table(box=box.SIMPLE_HEAD, title="rollouts   steps a second", title_justify="left", collapse_padding=True)
    for heading in ("", "median", "lowest", "highest", f"of {BASE}", "what"):
        result.add_column(heading, justify="right" if heading not in ("", "what") else "left")
    (base,) = (speed for speed in speeds if speed.name == BASE)
    for speed in speeds:
        numbers = (median(speed.samples), min(speed.samples), max(speed.samples))
        ratio = f"{median(speed.ratios(base)):.3g}" if "navigation" not in speed.name else ""
        result.add_row(speed.name, *(f"{number:,.0f}" for number in numbers), ratio, speed.about)
    return result
