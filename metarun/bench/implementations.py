"""Who is timed: one row of the comparison is one way to find the gradient of one meta-batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from metarun.bench.workloads import Method, Problem
from metarun.engine.capture import can_capture
from metarun.engine.plan import Plan
from metarun.engine.step import Engine
from metarun.engine.tuning import tuned

log = logging.getLogger("metarun")

LONG = 60_000
"""Iterations of the run whose plan is timed: MAML's on Omniglot."""

EVERY: tuple[Method, ...] = ("maml", "fomaml", "anil", "reptile", "protonet")


@dataclass(frozen=True)
class Ready:
    """An implementation made ready for one problem."""

    step: Callable[[], object]
    """Finds the gradient; returns when it is there, or on its way on the device."""
    gradient: Callable[[], list[Tensor]]
    """What the last step found, in the order of the learner's parameters."""


@dataclass(frozen=True)
class Implementation:
    """A row: its name, what it is, and how to make it ready. ``package`` must be installed for it."""

    name: str
    about: str
    methods: tuple[Method, ...]
    make: Callable[[Problem], Ready]
    package: str | None = None


def collected(parameters: Iterable[nn.Parameter]) -> Callable[[], list[Tensor]]:
    """Reads the gradients that ``backward`` left; zero where it left none."""
    parameters = list(parameters)
    return lambda: [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def planned(problem: Problem) -> Engine:
    """The engine with the plan that a long run here would find (in float64: captured, no search)."""
    learner = problem.learner()
    if problem.dtype == torch.float64:
        return Engine(learner, Plan(capture="graph" if can_capture(learner) else "none"))
    if found := tuned(learner, problem.batch, LONG, None, 0.0):
        log.info("%s: %s", problem.workload.name, found)
    return Engine(learner, found.plan if found else None)


def one_at_a_time(problem: Problem) -> Engine:
    """The engine with ``runner.chunk=1``, which needs the least memory."""
    learner = problem.learner()
    return Engine(learner, Plan(chunk=1, capture="graph" if can_capture(learner) else "none"))


def plain(problem: Problem) -> Engine:
    """The engine as a loop over tasks."""
    return Engine(problem.learner(), Plan(batched=False, chunk=1))


def gradient(problem: Problem, make: Callable[[Problem], Engine]) -> Ready:
    """The outer gradient alone."""
    engine = make(problem)
    return Ready(lambda: engine.gradient(problem.batch), collected(engine.algorithm.parameters()))


def outer_step(problem: Problem) -> Ready:
    """The whole outer step of a run, its optimizer's part included."""
    engine = planned(problem)
    return Ready(lambda: engine.meta_step(problem.batch, 0), collected(engine.algorithm.parameters()))


OURS = [
    Implementation("metarun", "the engine, as a run uses it", EVERY, partial(gradient, make=planned)),
    Implementation("metarun, whole step", "the same and the outer optimizer's step", EVERY, outer_step),
    Implementation(
        "metarun, chunk 1",
        "the engine, one task at a time",
        ("maml", "fomaml", "anil", "reptile"),
        partial(gradient, make=one_at_a_time),
    ),
    Implementation(
        "metarun, plain loop",
        "the same learner, one task after another",
        ("maml", "fomaml", "anil", "reptile"),
        partial(gradient, make=plain),
    ),
]
