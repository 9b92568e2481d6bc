"""How much of a run is not its outer steps: drawing episodes, logging, the display, checkpoints."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch

from metarun.algorithms.base import Metrics
from metarun.bench.machine import synchronise
from metarun.bench.workloads import WORKLOADS
from metarun.config.build import build
from metarun.config.compose import compose
from metarun.engine.step import Engine
from metarun.tasks.files import find

log = logging.getLogger("metarun")


@dataclass(frozen=True)
class EndToEnd:
    """Times of a run, from the begin of its first outer step to the end of its last."""

    task: str
    iterations: int
    seconds: float
    outside: float
    """Seconds outside the outer steps."""

    @property
    def share(self) -> float:
        return self.outside / self.seconds


def end_to_end(iterations: int, threads: int, device: torch.device, meta_batch: int | None) -> EndToEnd:
    """MAML with W2's network in the real loop: on Omniglot where it lies on this machine, else on letters.

    Validation, the test and starting up are left out; W&B logs offline, as in a run without a server.
    """
    workload = WORKLOADS["W2"].resized(meta_batch)
    task = "vision/omniglot" if find(None, "omniglot") else "vision/glyphs"
    log.info("end to end: %d iterations on %s", iterations, task)
    with TemporaryDirectory(ignore_cleanup_errors=True) as directory, _quiet():
        experiment = build(
            compose(
                [
                    f"task={task}",
                    *workload.words,
                    "algorithm.train_query=1",
                    "name=end_to_end",
                    f"runner.iterations={iterations}",
                    f"runner.meta_batch={workload.tasks}",
                    f"runner.threads={threads}",
                    f"runner.device={device}",
                    f"runner.directory={directory}",
                    "runner.validate_every=0",
                    "runner.test_episodes=1",
                    "runner.plots=false",
                    "tracker.wandb=offline",
                ]
            ).config
        )
        spans = clocked(experiment.engine, experiment.device)
        experiment.run()
    whole = spans[-1][1] - spans[0][0]
    return EndToEnd(task, iterations, whole, whole - sum(end - start for start, end in spans))


def clocked(engine: Engine, device: torch.device) -> list[tuple[float, float]]:
    """From now on, note when each outer step of ``engine`` begins and ends."""
    spans: list[tuple[float, float]] = []
    take = engine.meta_step

    def meta_step(batch: Any, iteration: int) -> Metrics:
        synchronise(device)
        start = time.perf_counter()
        metrics = take(batch, iteration)
        synchronise(device)
        spans.append((start, time.perf_counter()))
        return metrics

    engine.meta_step = meta_step  # type: ignore[method-assign]
    return spans


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Warnings alone: what a run says of its directory is no use once that is gone."""
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)
