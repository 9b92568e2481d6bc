"""Who is timed: one row of the comparison is one way to find the gradient of one meta-batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from metarun.bench.workloads import Method, Problem

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


def engine(problem: Problem, *, batched: bool = True) -> Ready:
    """The learner's own outer gradient; one task after another unless ``batched``."""
    learner = problem.learner()
    if not batched:
        learner.batched = False

    def step() -> None:
        learner.zero_grad()
        learner.outer_loss(problem.batch)[0].backward()

    return Ready(step, collected(learner.parameters()))


def outer_step(problem: Problem) -> Ready:
    """The whole outer step of a run, its optimizer's part included."""
    learner = problem.learner()
    return Ready(lambda: learner.meta_step(problem.batch, 0), collected(learner.parameters()))


OURS = [
    Implementation("metarun", "the engine, as a run uses it", EVERY, engine),
    Implementation("metarun, whole step", "the same and the outer optimizer's step", EVERY, outer_step),
    Implementation(
        "metarun, plain loop",
        "the same learner, one task after another",
        ("maml", "fomaml", "anil", "reptile"),
        partial(engine, batched=False),
    ),
]
