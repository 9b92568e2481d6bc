"""Implementations to compare. Each computes the outer gradient of one meta-batch in its own way."""

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

LONG_RUN = 60_000
"""Iterations of the run for which the engine chooses its plan: those of MAML on Omniglot."""

ALL_METHODS: tuple[Method, ...] = ("maml", "fomaml", "anil", "reptile", "protonet")


@dataclass(frozen=True)
class PreparedStep:
    """An implementation that is ready to compute the gradient of one problem."""

    step: Callable[[], object]
    """Computes the gradient. May return before the device has finished."""
    gradient: Callable[[], list[Tensor]]
    """Returns the gradient of the last step in the order of the learner's parameters."""


@dataclass(frozen=True)
class Implementation:
    """One row of a comparison.

    Attributes:
        name: Name of the row.
        about: Description for tables.
        methods: Methods that it implements.
        make: Prepares a problem.
        package: Python package that must be installed, or ``None``.
    """

    name: str
    about: str
    methods: tuple[Method, ...]
    make: Callable[[Problem], PreparedStep]
    package: str | None = None


def gradient_reader(parameters: Iterable[nn.Parameter]) -> Callable[[], list[Tensor]]:
    """Return a function that reads the gradients left by ``backward``, zero for parameters without one."""
    parameters = list(parameters)
    return lambda: [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def planned(problem: Problem) -> Engine:
    """Make the engine with the plan that a long run would choose. In float64 it captures a graph without a search."""
    learner = problem.learner()
    if problem.dtype == torch.float64:
        return Engine(learner, Plan(capture="graph" if can_capture(learner) else "none"))
    engine = Engine(learner)
    if found := tuned(engine, problem.batch, LONG_RUN, None, 0.0):
        log.info("%s: %s", problem.workload.name, found)
        engine.plan = found.plan
    return engine


def single_chunk(problem: Problem) -> Engine:
    """Make the engine with ``runner.chunk=1``, which needs the least memory."""
    learner = problem.learner()
    return Engine(learner, Plan(chunk=1, capture="graph" if can_capture(learner) else "none"))


def plain(problem: Problem) -> Engine:
    """Make the engine as a plain loop over tasks."""
    return Engine(problem.learner(), Plan(batched=False, chunk=1))


def gradient(problem: Problem, make: Callable[[Problem], Engine]) -> PreparedStep:
    """Prepare the outer gradient alone."""
    engine = make(problem)
    return PreparedStep(lambda: engine.gradient(problem.batch), gradient_reader(engine.algorithm.parameters()))


def outer_step(problem: Problem) -> PreparedStep:
    """Prepare the whole outer step of a run, including the step of the outer optimizer."""
    engine = planned(problem)
    return PreparedStep(lambda: engine.meta_step(problem.batch, 0), gradient_reader(engine.algorithm.parameters()))


METARUN = [
    Implementation("metarun", "the engine, as a run uses it", ALL_METHODS, partial(gradient, make=planned)),
    Implementation("metarun, whole step", "the same, with the step of the outer optimizer", ALL_METHODS, outer_step),
    Implementation(
        "metarun, chunk 1",
        "the engine, one task at a time",
        ("maml", "fomaml", "anil", "reptile"),
        partial(gradient, make=single_chunk),
    ),
    Implementation(
        "metarun, plain loop",
        "the same learner, one task after another",
        ("maml", "fomaml", "anil", "reptile"),
        partial(gradient, make=plain),
    ),
]
