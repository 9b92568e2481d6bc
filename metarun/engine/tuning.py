"""Choice of the plan by which a run computes its steps: the fastest exact one, its start included."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from math import ceil, inf
from pathlib import Path
from statistics import median
from typing import Any

import torch

from metarun import distributed, strict_json
from metarun.algorithms.functional import is_known
from metarun.algorithms.rl.base import RLAlgorithm
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.engine.capture import can_capture, tensors_of
from metarun.engine.measure import Exactness, peak, seconds, start_seconds
from metarun.engine.plan import Plan
from metarun.engine.step import Engine
from metarun.errors import UserError
from metarun.tasks.episode import TaskBatch
from metarun.tasks.files import atomic, cache_dir

log = logging.getLogger("metarun")

SEARCH_STEPS = 40
"""Steps that a search takes, about."""
SEARCH_SHARE = 0.05
"""Largest share of a run's steps that a search may take."""
COMPILATION = 20.0
"""Seconds that compiling a step took when it was measured, and must promise to save."""
SAVED = 2 / 3
"""Share of a small step's time that compiling is expected to save."""
SMALL = 0.02
"""Seconds up to which a step is worth compiling: longer ones spend their time in matrix products."""
MEMORY = 400e6
"""Bytes that a step's tensors may add on the CPU where a smaller part of the meta-batch would do with less."""
MEMORY_SHARE = 0.5
"""Share of a GPU's free memory that they may add there: it belongs to the run alone."""
CLOSE = 1.3
"""Largest ratio to the fastest first timing with which a plan is still a candidate."""
RECORDED = 2
"""Largest number of parts of the meta-batch that are recorded: the fastest ones unrecorded."""
ROUNDS = 3
"""In which the close ones take turns."""
RECORD_FROM = 100
"""Iterations from which RL on a GPU records its functions, which takes as long as a few of them."""
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
    start_seconds: float | None = None
    """Time of the first step, for which it is recorded and compiled."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for meta.json and the cache."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Tuned:
        """The inverse of :meth:`as_dict`; raises ``TypeError`` or ``KeyError`` for anything else."""
        known = {key: value for key, value in values.items() if key != "short"}  # kept by earlier versions
        return cls(**{**known, "plan": Plan(**values["plan"])})

    def seconds_for(self, iterations: float) -> float:
        """Return the time of a run's steps, the start included; of one step if ``iterations`` is infinite."""
        if self.milliseconds is None:
            return inf
        step = self.milliseconds / 1e3
        return step if iterations == inf else (self.start_seconds or 0.0) + iterations * step

    def __str__(self) -> str:
        words = [str(self.plan)]
        if self.plain_milliseconds is not None:
            words.append(f"{self.milliseconds:.3g} ms a step (plain loop: {self.plain_milliseconds:.3g} ms)")
        if self.peak_mb is not None:
            words.append(f"{self.peak_mb:.3g} MB at its peak")
        if self.error is not None:
            words.append(f"gradient checked to {self.error:.1g}")
        return "; ".join(words)


@dataclass(frozen=True)
class Measured:
    """The plans of a step that have been measured, as kept in the cache. The first is the default, unrecorded."""

    plans: tuple[Tuned, ...]
    searched: bool = False
    """True if the ways to divide the meta-batch were compared."""
    recorded: bool = False
    """True if recordings were among them."""
    compiled: bool = False
    """True if compiling was tried."""

    def best(self, iterations: float, ready: Collection[Plan] = ()) -> Tuned:
        """Return the plan by which a run of so many iterations ends first; infinitely many: the one of fastest steps.

        The default is left out if a search found that it takes too much memory or is not exact (it has no error then).

        Args:
            iterations: Number of iterations.
            ready: Plans whose start has been made.
        """
        usable = self.plans[1:] if self.searched and self.plans[0].error is None else self.plans
        at_once = [replace(t, start_seconds=0.0) if t.plan in ready else t for t in usable]
        return min(zip(usable, at_once, strict=True), key=lambda pair: pair[1].seconds_for(iterations))[0]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the cache."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Measured:
        """The inverse of :meth:`as_dict`; raises ``TypeError`` or ``KeyError`` for anything else."""
        return cls(**{**values, "plans": tuple(Tuned.of(each) for each in values["plans"])})


def tuned(engine: Engine, batch: Any, iterations: int, chunk: int | None, above: float | None) -> Tuned | None:
    """Return how to compute a run's steps on meta-batches like ``batch``; ``None`` if there is no choice.

    Plans are measured once for each learner, shape and device, and kept in the cache. Every run takes the one by which
    it ends first, its start included. Recordings made on the way are left in ``engine``.

    Args:
        engine: The engine of the run. Its plan and its algorithm are left as they are.
        batch: A meta-batch.
        iterations: Number of iterations of the run.
        chunk: Fixed number of tasks at once; ``None``: chosen.
        above: Seconds of all steps up to which no plan is searched for; ``None``: never. With 0 the search is always
            made, and the fastest step is taken whatever its start takes.
    """
    algorithm = engine.algorithm
    if isinstance(algorithm, RLAlgorithm):
        launches = batch.device.type == "cuda" and distributed.world_size() == 1 and is_known(algorithm)
        pays = above is not None and iterations >= RECORD_FROM
        return Tuned(Plan(capture="graph")) if launches and pays else None
    if not isinstance(algorithm, SupervisedAlgorithm) or algorithm.optimizer is None:
        return None
    trial = Engine(copy.deepcopy(algorithm).train())  # one for all plans: what it has recorded is used again
    if algorithm.needs_full_meta_batch:
        return Tuned(Plan(chunk=chunk))
    if above is None:
        return Tuned(Plan(chunk=chunk), peak_mb=peak(trial, batch, Plan(chunk=chunk)) / 1e6)
    path, kept = _kept(algorithm, batch, chunk)
    measured = choose(algorithm, trial, batch, iterations, chunk, above, kept)
    if path is not None and measured != kept:
        try:
            with atomic(path) as temporary:
                temporary.write_text(strict_json.dumps(measured.as_dict()))
        except UserError as error:
            log.info("how to compute a step is not kept for later runs: %s", error)
    ready = {plan for _, plan, *_ in trial.recordings}
    best = measured.best(inf if above == 0 else iterations, ready)
    engine.adopt(trial, best.plan)
    return best


def _kept(algorithm: SupervisedAlgorithm, batch: TaskBatch, chunk: int | None) -> tuple[Path | None, Measured | None]:
    """Return the file of these plans in the cache, and its content; ``None`` where there is none."""
    path = None
    with contextlib.suppress(UserError, OSError, RuntimeError, ValueError, TypeError, KeyError):
        path = cache_dir() / "plans" / f"{digest(algorithm, batch, chunk)}.json"
        return path, Measured.of(json.loads(path.read_text()))
    return path, None


def digest(algorithm: SupervisedAlgorithm, batch: TaskBatch, chunk: int | None) -> str:
    """Return a hash of everything that the measurements depend on."""
    tensors = tensors_of(batch)
    device = tensors[0].device
    facts = [
        repr(algorithm),
        {k: v for k, v in sorted(vars(algorithm).items()) if isinstance(v, (int, float, str, bool, type(None)))},
        [(list(t.shape), str(t.dtype)) for t in (*tensors, *algorithm.parameters())],
        [torch.cuda.get_device_name(device) if device.type == "cuda" else device.type, torch.get_num_threads()],
        [torch.__version__, chunk, "with start"],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:20]


def choose(
    algorithm: SupervisedAlgorithm,
    engine: Engine,
    batch: TaskBatch,
    iterations: int,
    chunk: int | None,
    above: float,
    known: Measured | None = None,
) -> Measured:
    """Measure what a run of so many iterations may gain by, and is not ``known`` yet.

    A search takes at most :data:`SEARCH_SHARE` of the run's steps, unless a step takes so much memory that dividing the
    meta-batch pays anyway. Shorter runs record nothing, since a recording saves less than it takes.
    """
    if known is None:
        plan = Plan(chunk=chunk)
        spent = 1e3 * seconds(engine, batch, plan, 1)
        known = Measured((Tuned(plan, spent, peak_mb=peak(engine, batch, plan) / 1e6),))
    default = known.plans[0]
    if default.seconds_for(iterations) < above:
        return known
    long = above == 0 or iterations * SEARCH_SHARE >= SEARCH_STEPS
    large = 1e6 * (default.peak_mb or 0.0) > spare_memory(batch.query.x.device)
    if (long and not known.recorded) or (large and not known.searched):
        known = search(algorithm, engine, batch, chunk, default, long)
    fastest_step = known.best(inf)
    spent = (fastest_step.milliseconds or 0.0) / 1e3
    worth_compiling = spent < SMALL and SAVED * spent * iterations > COMPILATION
    if not known.compiled and fastest_step.plan.capture == "graph" and worth_compiling:
        known = replace(compiled(algorithm, engine, batch, known, fastest_step), compiled=True)
    return known


def spare_memory(device: torch.device) -> float:
    """Return the bytes that a step's tensors may add on a device before smaller parts of a meta-batch are tried."""
    return MEMORY_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else MEMORY


def search(
    algorithm: SupervisedAlgorithm, engine: Engine, batch: TaskBatch, chunk: int | None, default: Tuned, record: bool
) -> Measured:
    """Time the ways to compute a step, and drop those that are not exact or need too much memory.

    Parts of the meta-batch are first timed unrecorded. Only the fastest are recorded, since recording takes long.
    """
    log.info("finding the fastest exact way to compute a step (kept for later runs)")
    plain = Plan(batched=False, chunk=1)
    exactness = Exactness(algorithm, batch)
    if exactness.random:  # two ways draw in different orders, but for a recording and what it records
        plain, chunk = default.plan, chunk or len(batch.query.y)
        exactness.truth = exactness.gradient(plain)
    can_record = record and can_capture(engine.algorithm)
    slowest = 1e3 * seconds(engine, batch, plain, 1)
    tried = [Tuned(plain, slowest, slowest, peak(engine, batch, plain) / 1e6, 0.0)]
    limit = max(spare_memory(batch.query.x.device), 1e6 * (tried[0].peak_mb or 0.0))
    tasks = len(batch.query.y)
    sizes = [chunk] if chunk else sorted({tasks, ceil(tasks / 2), ceil(tasks / 4), 1}, reverse=True)
    eager: list[Tuned] = []
    for plan in (Plan(chunk=size) for size in sizes):
        used = peak(engine, batch, plan)
        if used > limit and plan.chunk != 1:
            continue
        each = timed(Tuned(plan, None, slowest, used / 1e6, exactness.error(plan)), engine, batch)
        eager += [each] if each.milliseconds is not None else []
        if eager and each.seconds_for(inf) > CLOSE * min(t.seconds_for(inf) for t in eager):
            break  # smaller parts are slower still
    for each in sorted(eager, key=lambda t: t.seconds_for(inf))[:RECORDED] if can_record else []:
        tried.append(timed(replace(each, plan=replace(each.plan, capture="graph")), engine, batch, exactness))
    if not exactness.random:
        tried = [*(t for t in eager if t.plan.chunk != (chunk or tasks)), *tried]
    whole = [t for t in eager if t.plan.chunk == (chunk or tasks)] or [default]
    usable = in_turns([t for t in (*whole, *tried) if t.milliseconds is not None], engine, batch)
    return Measured(tuple(usable), searched=True, recorded=record)


def compiled(
    algorithm: SupervisedAlgorithm, engine: Engine, batch: TaskBatch, known: Measured, recorded: Tuned
) -> Measured:
    """Add the compiled form of a recorded plan."""
    plan = replace(recorded.plan, capture="compiled")
    exactness = Exactness(algorithm, batch)
    trial = timed(replace(recorded, plan=plan), engine, batch, exactness)
    if trial.milliseconds is None:
        return known
    both = in_turns([recorded, trial], engine, batch)
    return replace(known, plans=(*(t for t in known.plans if t is not recorded), *both))


def timed(candidate: Tuned, engine: Engine, batch: TaskBatch, exactness: Exactness | None = None) -> Tuned:
    """The candidate with its times and, where its operations can be followed, memory; unless it is not exact.

    With ``exactness`` the candidate is a recording, whose error is found once it is made.
    """
    start = None
    if exactness is not None:
        start = start_seconds(engine, batch, candidate.plan)
        candidate = replace(candidate, error=exactness.error_recorded(candidate.plan, engine, batch), milliseconds=None)
    if candidate.error is None or not candidate.error <= EXACT:
        log.warning("not used, as its gradient is off by %.1g: %s", candidate.error, candidate.plan)
        return candidate
    spent = 1e3 * seconds(engine, batch, candidate.plan, 1 if exactness is None else 3)
    log.info("  %.4g ms: %s", spent, candidate.plan)
    used = peak(engine, batch, candidate.plan) / 1e6 if candidate.plan.capture == "graph" else candidate.peak_mb
    return replace(candidate, milliseconds=spent, peak_mb=used, start_seconds=start)


def in_turns(tried: list[Tuned], engine: Engine, batch: TaskBatch) -> list[Tuned]:
    """The same plans, close ones timed again in turns, as what else the machine does comes and goes."""
    first = min(t.seconds_for(inf) for t in tried)
    close = [t for t in tried if t.seconds_for(inf) <= CLOSE * first]
    if len(close) < 2:
        return tried
    turns = [[1e3 * seconds(engine, batch, t.plan, 1) for t in close] for _ in range(ROUNDS)]
    again = {t.plan: median(times) for t, times in zip(close, zip(*turns, strict=True), strict=True)}
    return [replace(t, milliseconds=again.get(t.plan, t.milliseconds)) for t in tried]
