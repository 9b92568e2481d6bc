"""Measurement of all implementations on one workload: interleaved times, added memory and gradient errors.

Gradients are compared with those of a plain loop in float64. Only errors in float64 show whether two implementations
compute the same function. In float32, rounding can flip a ReLU or a maximum whose inputs are nearly tied, which changes
the gradient by far more than rounding itself. With millions of pooled units this happens in every implementation,
including the loop of learn2learn.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch

from metarun.bench.implementations import METARUN, Implementation, PreparedStep
from metarun.bench.machine import limit_threads, measure_added_memory, time_step, trim_memory
from metarun.bench.peers import BASE, PEERS
from metarun.bench.workloads import Problem, Workload
from metarun.training.device import keep_freed_memory

log = logging.getLogger("metarun")

MIN_SAMPLE_SECONDS = 0.02
"""Minimum duration of a sample in seconds. Shorter steps are repeated within a sample."""


@dataclass
class Row:
    """Measurements of one implementation."""

    implementation: Implementation
    samples: list[float] = field(default_factory=list)
    """Seconds per step, one value per round."""
    error: float | None = None
    """Relative error of the float32 gradient against the float64 reference."""
    error_float64: float | None = None
    """Relative error of the float64 gradient on at most two tasks."""
    added_mb: float | None = None
    """Peak memory that a step adds, in MB."""
    failed: str | None = None
    """Error that the implementation raised."""

    def ratios(self, base: Row) -> list[float]:
        """Return the speed relative to ``base`` in each round: the time of ``base`` divided by the own time."""
        return [b / own for b, own in zip(base.samples, self.samples, strict=True)]

    def as_dict(self, base: Row) -> dict[str, Any]:
        """Return the measurements for the JSON file, with times in milliseconds."""
        result: dict[str, Any] = {"name": self.implementation.name, "what": self.implementation.about}
        if self.failed is not None:
            return {**result, "failed": self.failed}
        ratios = self.ratios(base)
        return {
            **result,
            "median_ms": 1e3 * median(self.samples),
            "samples_ms": [1e3 * s for s in self.samples],
            f"times_{BASE.name}": {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)},
            "added_mb": self.added_mb,
            "gradient_error": self.error,
            "gradient_error_float64": self.error_float64,
        }


def rows_for(workload: Workload, peers: Sequence[Implementation]) -> list[Row]:
    """Return a row for the base, metarun's variants and the peers, as far as they support the workload's method."""
    return [Row(i) for i in (BASE, *METARUN, *peers) if workload.method in i.methods]


def compare(workload: Workload, rows: Sequence[Row], device: torch.device, rounds: int) -> None:
    """Measure gradient errors, which also warms up, and then the time per step.

    Each round measures all implementations in turn. An error that a peer raises is stored in its row, and the
    comparison continues without it. Only one implementation's graph is in memory at a time.

    Args:
        workload: Learner and shape of the meta-batch.
        rows: Rows to fill in. The first one is the base.
        device: Device to compute on.
        rounds: Number of rounds.
    """
    keep_freed_memory()  # as in a run; peers benefit from it, too
    truth = reference_gradient(workload)
    problem = Problem(workload, device, torch.float32)
    few = workload.with_tasks(min(workload.tasks, 2))
    few_truth, few_problem = reference_gradient(few), Problem(few, device, torch.float64)
    steps: dict[str, tuple[PreparedStep, int]] = {}
    for row in rows:
        log.info("%s: %s, gradient", workload.name, row.implementation.name)
        try:
            if device.type != "mps":  # MPS has no float64
                prepared = row.implementation.make(few_problem)
                prepared.step()
                row.error_float64 = relative_error(flat_gradient(prepared), few_truth)
            prepared = row.implementation.make(problem)
            prepared.step()
            row.error = relative_error(flat_gradient(prepared), truth)
            steps[row.implementation.name] = prepared, math.ceil(MIN_SAMPLE_SECONDS / time_step(prepared, device))
        except Exception as error:
            if row.implementation.package is None:
                raise
            row.failed = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("%s: %s failed: %s", workload.name, row.implementation.name, row.failed)
    for turn in range(rounds):
        log.info("%s: round %d of %d", workload.name, turn + 1, rounds)
        running = [row for row in rows if row.failed is None]
        for row in running if turn % 2 else reversed(running):  # alternate the order
            prepared, repeats = steps[row.implementation.name]
            row.samples.append(time_step(prepared, device, repeats))
    trim_memory()


def reference_gradient(workload: Workload) -> torch.Tensor:
    """Compute the gradient in float64 on the CPU by a plain loop over torch's layers, without the engine."""
    loop = BASE.make(Problem(workload, torch.device("cpu"), torch.float64))
    loop.step()
    return flat_gradient(loop)


def flat_gradient(prepared: PreparedStep) -> torch.Tensor:
    """Return the last gradient as one float64 vector on the CPU."""
    return torch.cat([g.detach().flatten().double().cpu() for g in prepared.gradient()])


def relative_error(gradient: torch.Tensor, truth: torch.Tensor) -> float:
    """Return ||gradient - truth|| / ||truth||."""
    return float((gradient - truth).norm() / truth.norm())


def measure_memory(workload: Workload, rows: Sequence[Row], device: torch.device, threads: int) -> None:
    """Measure the memory that a step adds, each implementation in a fresh process."""
    for row in rows:
        if row.failed is None:
            log.info("%s: %s, memory", workload.name, row.implementation.name)
            # Spawn instead of fork: torch's threads do not survive a fork, and the parent's memory would count.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                try:
                    row.added_mb = process.submit(
                        _memory, workload, row.implementation.name, str(device), threads
                    ).result()
                except BrokenProcessPool:
                    log.warning(
                        "%s: the process of %s was killed, probably because memory ran out",
                        workload.name,
                        row.implementation.name,
                    )


def _memory(workload: Workload, name: str, device: str, threads: int) -> float:
    implementation = next(i for i in (*METARUN, *PEERS.values()) if i.name == name)
    where = torch.device(device)
    keep_freed_memory()
    with limit_threads(threads, bind=implementation.package == "jax"):
        return measure_added_memory(implementation.make(Problem(workload, where, torch.float32)), where)
