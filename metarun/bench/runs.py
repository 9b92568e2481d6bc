"""Times of whole runs as users start them: gradient, outer step and iteration, with the threads that a run chooses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich import box
from rich.table import Table

from metarun.bench.machine import synchronise
from metarun.config.build import build
from metarun.config.compose import compose
from metarun.engine.step import Engine
from metarun.errors import UserError
from metarun.tracking.console import shown

log = logging.getLogger("metarun")

OMNIGLOT = ("task=vision/glyphs", "task.shot=1", "task.test_ways=[]", "model.width=64", "model.downsample=stride",
            "model.reduce=mean", "model.norm_scale=true", "algorithm.train_query=1", "algorithm.inner_steps=1",
            "runner.meta_batch=32")  # fmt: skip
RUNS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "sinusoids, MAML": (2000, ("task=regression/sinusoid", "algorithm=maml", "runner.meta_batch=25")),
    "letters, MAML": (60, ("algorithm=maml", *OMNIGLOT)),
    "letters, first-order MAML": (60, ("algorithm=fomaml", *OMNIGLOT)),
    "letters, ProtoNet": (60, ("task=vision/glyphs", "algorithm=protonet")),
    "intents, MAML": (30, ("task=nlp/intents", "algorithm=maml")),
    "bandit, RL2": (20, ("task=rl/bandit", "algorithm=rl2")),
    "GridNavi, VariBAD": (8, ("experiment=varibad/gridnavi",)),
    "navigation, MAML-TRPO": (8, ("task=rl/navigation", "algorithm=maml_trpo")),
    "HalfCheetah, MAML-TRPO": (4, ("task=rl/half_cheetah_dir", "algorithm=maml_trpo")),
}
"""Iterations and overrides of each run."""


@dataclass(frozen=True)
class RunTimes:
    """Median times of a run in seconds."""

    name: str
    threads: int
    plan: str
    gradient: float | None
    """Gradient of a meta-batch; ``None`` for learners that compute their steps themselves."""
    step: float
    """Outer step: the gradient and the optimizer."""
    iteration: float
    """From one outer step to the next: also drawing, metrics and their rows."""
    cpu: float
    """CPU time of an iteration, all threads."""


def time_runs(device: torch.device, runs: Mapping[str, tuple[int, Sequence[str]]] = RUNS) -> list[RunTimes]:
    """Train each run briefly with the plan of a long one and return its times. Runs without their packages are left
    out.
    """
    found = []
    for name, (iterations, words) in runs.items():
        log.info("runs: %s, %d iterations", name, iterations)
        try:
            found.append(time_run(name, words, iterations, device))
        except UserError as error:
            log.warning("runs: %s is left out: %s", name, error)
    return found


def time_run(name: str, words: Sequence[str], iterations: int, device: torch.device) -> RunTimes:
    """Train one run and return its times."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as directory, shown("quiet"):
        experiment = build(
            compose(
                [
                    *words,
                    "name=timed",
                    f"runner.iterations={iterations}",
                    f"runner.device={device}",
                    f"runner.directory={directory}",
                    "runner.tune_above=0",
                    "runner.validate_every=0",
                    "runner.select=last",
                    "runner.test_episodes=0",
                    "runner.plots=false",
                    "tracker.wandb=disabled",
                ]
            ).config
        )
        engine, step, gradient = experiment.engine, Engine.meta_step, Engine.gradient
        starts: list[float] = []
        cpu: list[float] = []
        steps: list[float] = []
        gradients: list[float] = []

        def meta_step(batch: Any, iteration: int) -> Any:
            starts.append(time.perf_counter())
            cpu.append(time.process_time())
            return timed(steps, lambda: step(engine, batch, iteration), experiment.device)

        engine.meta_step = meta_step  # type: ignore[method-assign]
        engine.gradient = lambda batch: timed(gradients, lambda: gradient(engine, batch), experiment.device)  # type: ignore[method-assign]
        experiment.run()
        return RunTimes(
            name,
            torch.get_num_threads(),
            str(engine.plan) if gradients else "",
            median(gradients) if gradients else None,
            median(steps),
            median(b - a for a, b in pairwise(starts)),
            median(b - a for a, b in pairwise(cpu)),
        )


def timed(spent: list[float], compute: Callable[[], Any], device: torch.device) -> Any:
    """Return what ``compute`` returns, and append the seconds it takes to ``spent``."""
    synchronise(device)
    start = time.perf_counter()
    result = compute()
    synchronise(device)
    spent.append(time.perf_counter() - start)
    return result


def runs_table(found: Sequence[RunTimes]) -> Table:
    """Return a table of times in milliseconds."""
    result = Table(box=box.SIMPLE_HEAD, title="runs   ms, medians", title_justify="left", collapse_padding=True)
    for heading in ("", "threads", "gradient", "step", "iteration", "CPU", "of gradient", "plan"):
        result.add_column(heading, justify="right" if heading not in ("", "plan") else "left")
    for each in found:
        times = (
            f"{1e3 * s:.3g}" if s is not None else "" for s in (each.gradient, each.step, each.iteration, each.cpu)
        )
        ratio = f"{each.iteration / each.gradient:.2f}" if each.gradient else ""
        result.add_row(each.name, str(each.threads), *times, ratio, each.plan)
    return result


def as_json(found: Sequence[RunTimes]) -> list[dict[str, Any]]:
    """Return the times for the JSON file."""
    return [asdict(each) for each in found]
