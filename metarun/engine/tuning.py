"""The fastest exact way to compute a step on this machine, found when a run starts and kept with it."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import ceil
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metarun import strict_json
from metarun.algorithms.base import Algorithm
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.engine.capture import can_capture
from metarun.engine.plan import Plan
from metarun.engine.step import Engine
from metarun.errors import UserError
from metarun.tasks.episode import TaskBatch
from metarun.tasks.files import atomic, cache_dir

log = logging.getLogger("metarun")

COMPILATION = 35.0
"""Seconds that compiling a step took when it was measured, in float64 too to check it, and must promise to save."""
SAVED = 2 / 3
"""Share of a small step's time that compiling is expected to save."""
SMALL = 0.02
"""Seconds up to which a step is worth compiling: longer ones spend their time in matrix products."""
MEMORY = 400e6
"""Bytes that a step's tensors may add where a smaller part of the meta-batch would do with less."""
CLOSE = 1.3
"""Largest ratio to the fastest first timing with which a plan is still a candidate."""
ROUNDS = 5
"""In which the close ones take turns."""
EXACT = 1e-8
"""Relative difference from the plain loop's gradient, in float64, up to which a way to compute it counts as exact."""


@dataclass(frozen=True)
class Tuned:
    """A plan, and what was measured of it; ``None`` where nothing was."""

    plan: Plan
    milliseconds: float | None = None
    plain_milliseconds: float | None = None
    """Time of the plain loop: one task after another, uncaptured. For a random step: that of the step uncaptured."""
    peak_mb: float | None = None
    """Peak memory that the tensors of a step add."""
    error: float | None = None
    """Relative difference from the plain loop's gradient, in float64 on two tasks."""
    short: int | None = None
    """A run of up to so many iterations is too short for a search, or for what it has left out."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Tuned:
        """The inverse of :meth:`as_dict`; raises ``TypeError`` or ``KeyError`` for anything else."""
        return cls(**{**values, "plan": Plan(**values["plan"])})

    def __str__(self) -> str:
        words = [str(self.plan)]
        if self.milliseconds is not None:
            words.append(f"{self.milliseconds:.3g} ms a step (plain loop: {self.plain_milliseconds:.3g} ms)")
        if self.peak_mb is not None:
            words.append(f"{self.peak_mb:.3g} MB at its peak")
        if self.error is not None:
            words.append(f"gradient checked to {self.error:.1g}")
        return "; ".join(words)


def tuned(algorithm: Algorithm, batch: Any, iterations: int, chunk: int | None, above: float | None) -> Tuned | None:
    """Return how to compute ``algorithm``'s steps on meta-batches like ``batch``; ``None`` if there is no choice.

    Found once for each learner, shape and device, and kept in the cache. ``chunk`` fixes the tasks at once; runs whose
    steps take up to ``above`` seconds in all are not worth a search (``None``: none is).
    """
    if not isinstance(algorithm, SupervisedAlgorithm) or algorithm.optimizer is None:
        return None
    path = None
    with contextlib.suppress(UserError, OSError, RuntimeError, ValueError, TypeError, KeyError):
        path = cache_dir() / "plans" / f"{digest(algorithm, batch, chunk, above)}.json"
        kept = Tuned.of(json.loads(path.read_text()))
        if kept.short is None or iterations <= kept.short:
            return kept
    found = choose(algorithm, batch, iterations, chunk, above)
    if path is not None:
        try:
            with atomic(path) as temporary:
                temporary.write_text(strict_json.dumps(found.as_dict()))
        except UserError as error:
            log.info("how to compute a step is not kept for later runs: %s", error)
    return found


def digest(algorithm: SupervisedAlgorithm, batch: TaskBatch, chunk: int | None, above: float | None) -> str:
    """Hash of everything that the choice depends on."""
    tensors = (batch.support.x, batch.support.y, batch.query.x, batch.query.y)
    device = tensors[0].device
    facts = [
        repr(algorithm),
        {k: v for k, v in sorted(vars(algorithm).items()) if isinstance(v, (int, float, str, bool, type(None)))},
        [(list(t.shape), str(t.dtype)) for t in (*tensors, *algorithm.parameters())],
        [torch.cuda.get_device_name(device) if device.type == "cuda" else device.type, torch.get_num_threads()],
        [torch.__version__, chunk, above],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:20]


def choose(
    algorithm: SupervisedAlgorithm, batch: TaskBatch, iterations: int, chunk: int | None, above: float | None
) -> Tuned:
    """Time the candidates, drop those that are not exact or need too much memory, and take the fastest."""
    learner = copy.deepcopy(algorithm).train()
    engine = Engine(learner)  # one for all candidates: what it has recorded is used again
    tasks = len(batch.query.y)
    default = Plan(chunk=chunk)
    if learner.needs_full_meta_batch:
        return Tuned(default)
    first = seconds(engine, batch, default, 1)
    if above is None or first * iterations < above:
        return Tuned(default, peak_mb=peak(engine, batch, default) / 1e6, short=None if above is None else iterations)
    log.info("finding the fastest exact way to compute a step (kept for later runs)")
    plain = Plan(batched=False, chunk=1)
    exactness = Exactness(algorithm, batch)
    if exactness.random:  # two ways draw in different orders, but for a recording and what it records
        exactness.truth, plain, chunk = exactness.gradient(default), default, chunk or tasks
    limit = max(MEMORY, peak(engine, batch, plain))
    capture = "graph" if can_capture(learner) else "none"
    sizes = [chunk] if chunk else sorted({tasks, ceil(tasks / 2), ceil(tasks / 4), 1}, reverse=True)
    slowest = 1e3 * seconds(engine, batch, plain, 1)
    tried = [Tuned(plain, slowest, slowest, peak(engine, batch, plain) / 1e6, 0.0)]
    candidates = [Plan(chunk=size, capture=capture) for size in sizes]  # type: ignore[arg-type]
    for plan in candidates if capture == "graph" or not exactness.random else []:
        used = peak(engine, batch, replace(plan, capture="none"))
        if used > limit and plan.chunk != 1:
            continue
        trial = timed(Tuned(plan, None, slowest, used / 1e6, exactness.error(plan)), engine, batch)
        if trial.milliseconds is not None:
            tried.append(trial)
            if trial.milliseconds > CLOSE * min(t.milliseconds for t in tried if t.milliseconds):
                break  # smaller parts are slower still
    best = fastest(tried, engine, batch)
    spent = (best.milliseconds or 0) / 1e3
    if best.plan.capture == "graph" and spent < SMALL:
        enough = ceil(COMPILATION / (SAVED * spent))
        if iterations < enough:
            return replace(best, short=enough - 1)
        plan = replace(best.plan, capture="compiled")
        trial = timed(Tuned(plan, None, slowest, best.peak_mb, exactness.error(plan)), engine, batch)
        best = fastest([best, trial] if trial.milliseconds is not None else [best], engine, batch)
    return best


def timed(candidate: Tuned, engine: Engine, batch: TaskBatch) -> Tuned:
    """The candidate with its time and, where its operations can be followed, memory; unless it is not exact."""
    if candidate.error is None or not candidate.error <= EXACT:
        log.warning("not used, as its gradient is off by %.1g: %s", candidate.error, candidate.plan)
        return candidate
    spent = 1e3 * seconds(engine, batch, candidate.plan)
    log.info("  %.4g ms: %s", spent, candidate.plan)
    used = candidate.peak_mb if candidate.plan.capture == "compiled" else peak(engine, batch, candidate.plan) / 1e6
    return replace(candidate, milliseconds=spent, peak_mb=used)


def fastest(tried: list[Tuned], engine: Engine, batch: TaskBatch) -> Tuned:
    """The fastest of those that have been timed; close ones in turns, as what else the machine does comes and goes."""
    first = min(t.milliseconds for t in tried if t.milliseconds is not None)
    close = [t for t in tried if t.milliseconds is not None and t.milliseconds <= CLOSE * first]
    if len(close) > 1:
        turns = [[1e3 * seconds(engine, batch, t.plan, 1) for t in close] for _ in range(ROUNDS)]
        close = [
            replace(t, milliseconds=median(times)) for t, times in zip(close, zip(*turns, strict=True), strict=True)
        ]
    return min(close, key=lambda t: t.milliseconds or 0)


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


def seconds(engine: Engine, batch: TaskBatch, plan: Plan, rounds: int = 3) -> float:
    """The median time of a gradient, once warm."""
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


class _Alive(TorchDispatchMode):
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
