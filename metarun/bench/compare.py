"""One workload, every implementation: interleaved times, added memory, and each gradient against a float64 loop's.

Whether two implementations compute the same thing shows in float64. In float32 a ReLU or a maximum whose inputs are
within rounding of a tie may fall the other way, which moves the gradient by far more than rounding does: where millions
of units are pooled no implementation is spared, learn2learn's loop included.
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

from metarun.bench.implementations import OURS, Implementation, Ready
from metarun.bench.machine import added_by_step, give_back_freed_memory, limited_to, seconds
from metarun.bench.peers import BASE, PEERS
from metarun.bench.workloads import Problem, Workload
from metarun.training.device import keep_freed_memory

log = logging.getLogger("metarun")

SHORTEST = 0.02
"""Seconds a sample lasts at least; steps that are shorter are repeated within it."""


@dataclass
class Row:
    """What was measured of one implementation."""

    implementation: Implementation
    samples: list[float] = field(default_factory=list)
    """Seconds a step, one for each round."""
    error: float | None = None
    """Relative distance of its float32 gradient from the float64 one."""
    error_float64: float | None = None
    """The same of its gradient in float64, on at most two tasks."""
    added_mb: float | None = None
    """Memory that a step adds at its peak."""
    failed: str | None = None

    def ratios(self, base: Row) -> list[float]:
        """``base``'s time over this one's, round by round: how many times as fast."""
        return [b / own for b, own in zip(base.samples, self.samples, strict=True)]

    def as_dict(self, base: Row) -> dict[str, Any]:
        """For the JSON file; times in milliseconds."""
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
    """A row for the base, each of the engine's forms and each peer that has a loop for the workload's method."""
    return [Row(i) for i in (BASE, *OURS, *peers) if workload.method in i.methods]


def compare(workload: Workload, rows: Sequence[Row], device: torch.device, rounds: int) -> None:
    """Fill ``rows`` in: gradients first, which also warms up, then the rounds, each with every row in turn.

    Only one implementation's graph is alive at a time. What a peer raises is noted in its row; the rest goes on.
    """
    keep_freed_memory()  # as a run does; peers profit alike
    truth = reference(workload)
    problem = Problem(workload, device, torch.float32)
    few = workload.resized(min(workload.tasks, 2))
    few_truth, few_problem = reference(few), Problem(few, device, torch.float64)
    ready: dict[str, tuple[Ready, int]] = {}
    for row in rows:
        log.info("%s: %s, gradient", workload.name, row.implementation.name)
        try:
            if device.type != "mps":  # which has no float64
                one = row.implementation.make(few_problem)
                one.step()
                row.error_float64 = relative_error(flat(one), few_truth)
            one = row.implementation.make(problem)
            one.step()
            row.error = relative_error(flat(one), truth)
            ready[row.implementation.name] = one, math.ceil(SHORTEST / seconds(one, device))
        except Exception as error:
            if row.implementation.package is None:
                raise
            row.failed = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("%s: %s failed: %s", workload.name, row.implementation.name, row.failed)
    for turn in range(rounds):
        log.info("%s: round %d of %d", workload.name, turn + 1, rounds)
        running = [row for row in rows if row.failed is None]
        for row in running if turn % 2 else reversed(running):  # nobody always follows the same one
            one, repeats = ready[row.implementation.name]
            row.samples.append(seconds(one, device, repeats))
    give_back_freed_memory()


def reference(workload: Workload) -> torch.Tensor:
    """The gradient in float64, by a plain loop of torch's own layers on the CPU that shares nothing with the engine."""
    loop = BASE.make(Problem(workload, torch.device("cpu"), torch.float64))
    loop.step()
    return flat(loop)


def flat(ready: Ready) -> torch.Tensor:
    """The last gradient as one float64 vector."""
    return torch.cat([g.detach().flatten().double().cpu() for g in ready.gradient()])


def relative_error(gradient: torch.Tensor, truth: torch.Tensor) -> float:
    return float((gradient - truth).norm() / truth.norm())


def measure_memory(workload: Workload, rows: Sequence[Row], device: torch.device, threads: int) -> None:
    """Fill in what a step adds to memory, each implementation in a fresh process of its own."""
    for row in rows:
        if row.failed is None:
            log.info("%s: %s, memory", workload.name, row.implementation.name)
            # Spawned, not forked: torch's threads do not survive a fork, and the parent's memory would count.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                try:
                    row.added_mb = process.submit(
                        _memory, workload, row.implementation.name, str(device), threads
                    ).result()
                except BrokenProcessPool:
                    log.warning("%s: %s was killed, for memory as a rule", workload.name, row.implementation.name)


def _memory(workload: Workload, name: str, device: str, threads: int) -> float:
    implementation = next(i for i in (*OURS, *PEERS.values()) if i.name == name)
    where = torch.device(device)
    keep_freed_memory()
    with limited_to(threads, bind=implementation.package == "jax"):
        return added_by_step(implementation.make(Problem(workload, where, torch.float32)), where)
