"""Measurements of plans: time, memory, and the error of the gradient."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.engine.plan import Plan
from metarun.engine.step import Engine
from metarun.engine.watching import OperationMode
from metarun.tasks.episode import TaskBatch
from metarun.tasks.rng import forked_rng

log = logging.getLogger("metarun")

SAME = 1e-5
"""Relative difference in the run's own precision up to which a recorded step is the step that was recorded. A recording
has its bits; compiled code rounds differently."""


class Exactness:
    """Compares the gradients of plans with the plain loop's, in float64: there no unit's input is so near to a kink
    of its nonlinearity that rounding decides the side, which in float32 moves gradients by more than rounding does.
    """

    def __init__(self, algorithm: SupervisedAlgorithm, batch: TaskBatch) -> None:
        on_cpu = batch.query.x.device.type == "mps"  # which has no float64
        self.learner = copy.deepcopy(algorithm).double().train()
        few = TaskBatch(batch.support.map(lambda t: t[:2]), batch.query.map(lambda t: t[:2, :10]))  # float64 is slow
        self.batch = few.map(lambda t: t.double() if t.is_floating_point() else t)
        if on_cpu:
            self.learner, self.batch = self.learner.cpu(), self.batch.map(lambda t: t.cpu())
        self.engine = Engine(self.learner)
        self.errors: dict[Plan, float] = {}
        plain = Plan(batched=False, chunk=1)
        self.truth = self.gradient(plain)
        self.random = not torch.equal(self.truth, self.gradient(plain, seed=1))
        """True if the step draws random numbers of its own, so that plans cannot be compared."""

    def error_recorded(self, plan: Plan, engine: Engine, batch: TaskBatch) -> float:
        """Relative difference of a recorded plan, which ``engine`` may already have recorded for ``batch``.

        If the recording agrees with the step that it records (:data:`SAME`), the difference is that step's. Recording
        once more in float64, which takes seconds, is only needed if it does not.
        """
        eager = replace(plan, capture="none")
        return self.error(eager if difference(engine, batch, plan, eager) <= SAME else plan)

    def error(self, plan: Plan) -> float:
        """Relative difference; infinite where the plan cannot be carried out."""
        plan = replace(plan, chunk=1 if plan.chunk == 1 else None)
        if plan not in self.errors:
            try:
                gradient = self.gradient(plan)
                self.errors[plan] = float((gradient - self.truth).norm() / self.truth.norm())
            except Exception as error:
                log.warning("%s: %s", plan, " ".join(str(error).split())[:200])
                self.errors[plan] = float("inf")
        return self.errors[plan]

    def gradient(self, plan: Plan, seed: int = 0) -> Tensor:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            torch.manual_seed(seed)
            self.engine.plan = plan
            self.engine.gradient(self.batch)
        finally:
            torch.set_default_dtype(before)
        return torch.cat([p.grad.flatten() for p in self.learner.parameters() if p.grad is not None]).detach().clone()


def difference(engine: Engine, batch: TaskBatch, plan: Plan, other: Plan) -> float:
    """Return the relative difference of two plans' gradients in the engine's own precision, from the same seed."""
    found = []
    for engine.plan in (plan, other):
        with forked_rng(batch.query.x.device, seed=0):
            engine.gradient(batch)
        gradients = (p.grad for p in engine.algorithm.parameters() if p.grad is not None)
        found.append(torch.cat([g.flatten().double().cpu() for g in gradients]))
    return float((found[0] - found[1]).norm() / found[1].norm())


def start_seconds(engine: Engine, batch: TaskBatch, plan: Plan) -> float:
    """Return the time of a plan's first gradient, for which it is recorded and compiled."""
    engine.plan = plan
    wait(batch.query.x.device)
    start = time.perf_counter()
    engine.gradient(batch)
    wait(batch.query.x.device)
    return time.perf_counter() - start


def seconds(engine: Engine, batch: TaskBatch, plan: Plan, rounds: int = 3) -> float:
    """Return the median time of a gradient, once warm."""
    engine.plan, times = plan, []
    for _ in range(rounds + 1):
        wait(batch.query.x.device)
        start = time.perf_counter()
        engine.gradient(batch)
        wait(batch.query.x.device)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def wait(device: torch.device) -> None:
    """Until what was asked of a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(engine: Engine, batch: TaskBatch, plan: Plan) -> int:
    """Bytes that the tensors of a step add at their peak; without the scratch space of kernels."""
    engine.plan = plan
    with _Alive() as alive:
        engine.gradient(batch)
    return alive.peak


class _Alive(OperationMode):
    """Adds up the storages that operations made and that are not freed yet."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[StorageWeakRef, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {StorageWeakRef(t.untyped_storage()) for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = StorageWeakRef(tensor.untyped_storage())
                if storage not in before and storage not in self.held:
                    size = tensor.untyped_storage().nbytes()
                    self.held[storage] = size
                    self.now += size
        # Looked through whenever the peak could have grown, not at every operation.
        if self.now > self.peak:
            for storage in [s for s in self.held if s.expired()]:
                self.now -= self.held.pop(storage)
            self.peak = max(self.peak, self.now)
        return result
