"""The outer loop: draw a meta-batch, take the outer step, log, validate, keep the best, stop and resume exactly."""

from __future__ import annotations

import time
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch

from metarun import distributed
from metarun.algorithms.base import Metrics
from metarun.errors import Interrupted, RunFailed
from metarun.evaluation.evaluator import evaluate
from metarun.tasks.rng import Share, derived_seed
from metarun.training import checkpoint
from metarun.training.signals import StopRequest

if TYPE_CHECKING:
    from metarun.training.experiment import Experiment


def meta_batch_indices(iteration: int, size: int, rank: int = 0, world: int = 1) -> range | Share:
    """The tasks of one meta-batch: rank r of w takes every w-th, so that the union is the same for any w."""
    whole = range(iteration * size, (iteration + 1) * size)
    return whole if world == 1 else Share(whole, rank, world)


class Progress:
    """What a run must remember to go on exactly: written with every checkpoint."""

    def __init__(self) -> None:
        self.iteration = 0
        self.best: float | None = None
        self.best_iteration: int | None = None
        self.validated: int | None = None
        self.seconds = 0.0
        self.metrics_size = 0
        self.ended_by: str | None = None
        """The key of the budget that ended training before ``runner.iterations``, if one did."""
        self.clock: list[tuple[int, float]] = []
        """(iteration, seconds of the run until then) of each validation. Not in metrics.jsonl, which holds no times."""
        self.pending: list[Metrics] = []
        """Metrics of the iterations since the last logged row, still on the device."""

    def state(self) -> dict[str, Any]:
        return dict(vars(self))

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint holds; raises ``ValueError`` for what is no progress."""
        whole = all(name in vars(self) for name in state) and type(state["iteration"]) is int
        if not whole or state["iteration"] < 0 or type(state["metrics_size"]) is not int:
            raise ValueError("unknown names, or no counts")
        vars(self).update(state)


def meta_train(run: Experiment, progress: Progress, stop: StopRequest) -> None:
    """Train from ``progress`` to ``runner.iterations``; raises :class:`Interrupted` after a checkpoint on a signal.

    Of several processes each takes its part of every step, and the lead alone validates, saves and shows.
    """
    runner, task, algorithm = run.runner, run.task, run.algorithm
    budget = None if runner.minutes is None else 60 * runner.minutes
    shape = algorithm.train_shape(task.shape)
    leads, rank, world = distributed.is_main(), distributed.rank(), distributed.world_size()
    clock = last_save = time.monotonic()

    def save() -> None:
        nonlocal clock, last_save
        if not leads:
            return
        last_save = time.monotonic()
        progress.seconds += last_save - clock
        clock = last_save
        progress.metrics_size = run.metrics.size
        run.metrics.sync()
        checkpoint.save(
            run.checkpoints / "last.pt", {"algorithm": algorithm.checkpoint(), "progress": progress.state()}
        )

    def spent() -> float:
        """Seconds that the run has trained, before it was resumed too."""
        return progress.seconds + time.monotonic() - clock

    if leads and not algorithm.learns and run.on_validation is not None and progress.validated is None:
        validate(run, progress, stop)  # a search judges what is not trained, too
    while True:
        over = leads and budget is not None and 0 < progress.iteration < runner.iterations and spent() >= budget
        if over and progress.pending:
            run.log(train_row(progress))
        ended = over or progress.iteration >= runner.iterations
        if leads and validation_due(progress, runner.validate_every, ended):
            validate(run, progress, stop)
            if progress.validated == progress.iteration:
                progress.clock.append((progress.iteration, round(spent(), 2)))
        # One number for all ranks, so that they stop together: by a signal before the lead's end of time.
        signal, out_of_time = divmod(distributed.all_reduce_max(2 * (stop.signal or 0) + int(over)), 2)
        progress.ended_by = "runner.minutes" if out_of_time else None
        if signal:
            save()
            raise Interrupted(signal)
        if out_of_time or progress.iteration >= runner.iterations:
            save()
            return
        if stop.save or time.monotonic() - last_save > runner.checkpoint_seconds:
            stop.save = False
            save()
        iteration = progress.iteration
        # Reseeded for every iteration: the step's own randomness, too, is a function of (seed, iteration).
        torch.manual_seed(derived_seed(run.seed, "train", iteration, stream=10) + rank)
        batch = task.batch("train", meta_batch_indices(iteration, runner.meta_batch, rank, world), shape)
        metrics = run.engine.meta_step(batch, iteration)
        progress.pending.append(dict(zip(metrics, distributed.average(list(metrics.values())), strict=True)))
        progress.iteration += 1
        row = None
        if progress.iteration % runner.log_every == 0 or progress.iteration == runner.iterations:
            row = train_row(progress)
            if leads:
                run.log(row)
        if leads:
            run.display.step(progress.iteration, row)


def validation_due(progress: Progress, every: int, ended: bool) -> bool:
    """Whether to validate now: every so often (0: never) and when training has ended, once."""
    now = progress.iteration
    return every > 0 and now > 0 and (now % every == 0 or ended) and progress.validated != now


def train_row(progress: Progress) -> dict[str, Any]:
    """The means since the last row, read back from the device in one transfer; stops the run if one is not finite."""
    names = list(progress.pending[0])
    dtype = torch.get_default_dtype()
    table = torch.stack([torch.stack([m[name].to(dtype) for name in names]) for m in progress.pending]).cpu().double()
    first = progress.iteration - len(progress.pending)
    progress.pending = []
    finite = torch.isfinite(table).all(dim=1)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        culprits = ", ".join(n for n, v in zip(names, table[bad], strict=True) if not torch.isfinite(v))
        raise RunFailed(
            f"{culprits} became NaN or infinite at iteration {first + bad + 1}; "
            "a smaller algorithm.inner_lr or algorithm.outer_lr is the usual cure"
        )
    means = table.mean(0).tolist()
    return {"iteration": progress.iteration, **{f"train/{n}": v for n, v in zip(names, means, strict=True)}}


def better(value: float, best: float | None, higher: bool) -> bool:
    """Whether ``value`` is the best so far; what is not finite never is, and any number betters it."""
    if not isfinite(value):
        return False
    return best is None or not isfinite(best) or (value > best if higher else value < best)


def validate(run: Experiment, progress: Progress, stop: StopRequest) -> None:
    """Judge the learner on the fixed validation tasks; keep it as best.pt if it is the best so far.

    A signal in its middle leaves ``progress`` as it was: the resumed run repeats the validation.
    """
    runner, metric = run.runner, run.task.metric
    try:
        result = evaluate(
            run.algorithm,
            run.task,
            "val",
            runner.val_episodes,
            batch=runner.eval_batch,
            stopped=lambda: stop.signal,
        )
    except Interrupted:
        return
    row: dict[str, Any] = {"iteration": progress.iteration}
    for name, estimate in result.final().items():
        row |= {f"val/{name}": estimate.mean, f"val/{name}_ci95": estimate.ci95}
    value = row[f"val/{metric}"]
    if better(value, progress.best, run.task.higher_is_better):
        progress.best, progress.best_iteration = value, progress.iteration
        checkpoint.save(
            run.checkpoints / "best.pt",
            {"algorithm": run.algorithm.checkpoint(), "iteration": progress.iteration},
        )
    progress.validated = progress.iteration
    run.log(row)
    run.display.validation(progress.iteration, value, progress.best)
    if run.on_validation is not None:
        run.on_validation(row)
