"""Measurement of a run's overhead: time outside the outer steps for episodes, logging, display and checkpoints."""

from __future__ import annotations

import logging
import time
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
from metarun.tracking.console import shown

log = logging.getLogger("metarun")


@dataclass(frozen=True)
class EndToEnd:
    """Times of a run from the start of its first outer step to the end of its last."""

    task: str
    iterations: int
    seconds: float
    outside: float
    """Seconds outside the outer steps."""

    @property
    def share(self) -> float:
        """Share of the time that is spent outside the outer steps."""
        return self.outside / self.seconds


def end_to_end(iterations: int, threads: int, device: torch.device, meta_batch: int | None) -> EndToEnd:
    """Train MAML with the network of workload W2 in the real training loop and measure its overhead.

    The task is Omniglot if its data is on this machine, else glyphs. Start-up, validation and test do not count.
    W&B logs offline.

    Args:
        iterations: Number of outer steps.
        threads: Number of CPU threads.
        device: Device to compute on.
        meta_batch: Tasks per outer step; ``None`` for the workload's own number.
    """
    workload = WORKLOADS["W2"].with_tasks(meta_batch)
    task = "vision/omniglot" if find(None, "omniglot") else "vision/glyphs"
    log.info("end to end: %d iterations on %s", iterations, task)
    with TemporaryDirectory(ignore_cleanup_errors=True) as directory, shown("quiet"):
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
        spans = record_steps(experiment.engine, experiment.device)
        experiment.run()
    total = spans[-1][1] - spans[0][0]
    return EndToEnd(task, iterations, total, total - sum(end - start for start, end in spans))


def record_steps(engine: Engine, device: torch.device) -> list[tuple[float, float]]:
    """Wrap ``engine.meta_step`` and return a list to which each step adds its start and end in seconds."""
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
