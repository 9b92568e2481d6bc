"""Who is timed: one row of the comparison is one way to find the gradient of one meta-batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metarun.algorithms.step import Plan
from metarun.bench.workloads import Method, Problem
from metarun.training.tuning import tuned

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


def planned(problem: Problem) -> Any:
    """The learner, with the plan that a long run here would find (in float64: captured, no search)."""
    learner = problem.learner()
    if problem.dtype == torch.float64:
        learner.plan = Plan(capture="graph" if learner.capturable() and not learner.whole else "none")
    elif found := tuned(learner, problem.batch, LONG, None, 0.0):
        learner.plan = found.plan
        log.info("%s: %s", problem.workload.name, found)
    return learner


def one_at_a_time(problem: Problem) -> Any:
    """The learner with ``runner.chunk=1``: the least memory that the engine can do with."""
    learner = problem.learner()
    learner.plan = Plan(chunk=1, capture="graph" if learner.capturable() and not learner.whole else "none")
    return learner


def plain(problem: Problem) -> Any:
    """The learner as a loop over tasks."""
    learner = problem.learner()
    learner.plan = Plan(batched=False, chunk=1)
    return learner


def gradient(problem: Problem, learner: Callable[[Problem], Any]) -> Ready:
    """The outer gradient alone."""
    made = learner(problem)
    return Ready(lambda: made.outer_gradient(problem.batch), collected(made.parameters()))


def outer_step(problem: Problem) -> Ready:
    """The whole outer step of a run, its optimizer's part included."""
    learner = planned(problem)
    return Ready(lambda: learner.meta_step(problem.batch, 0), collected(learner.parameters()))


OURS = [
    Implementation("metarun", "the engine, as a run uses it", EVERY, partial(gradient, learner=planned)),
    Implementation("metarun, whole step", "the same and the outer optimizer's step", EVERY, outer_step),
    Implementation(
        "metarun, chunk 1",
        "the engine, one task at a time",
        ("maml", "fomaml", "anil", "reptile"),
        partial(gradient, learner=one_at_a_time),
    ),
    Implementation(
        "metarun, plain loop",
        "the same learner, one task after another",
        ("maml", "fomaml", "anil", "reptile"),
        partial(gradient, learner=plain),
    ),
]
