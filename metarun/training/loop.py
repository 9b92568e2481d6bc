"""The outer loop: draw a meta-batch, take the outer step, log, validate, keep the best, stop and resume exactly."""

from __future__ import annotations

from math import isfinite
from typing import Any

import torch

from metarun import distributed
from metarun.algorithms.base import Algorithm
from metarun.engine.step import Engine
from metarun.errors import Interrupted, RunFailed
from metarun.evaluation.evaluator import evaluate
from metarun.tasks.base import Task
from metarun.tasks.rng import Share, derived_seed
from metarun.training.session import Outputs, Progress, Session
from metarun.training.settings import Runner
from metarun.training.signals import StopRequest


def meta_batch_indices(iteration: int, size: int, rank: int = 0, world: int = 1) -> range | Share:
    """Indices of the tasks of one meta-batch.

    Rank r of ``world`` ranks takes every ``world``-th task, so that their union is the same for any number of ranks.
    """
    whole = range(iteration * size, (iteration + 1) * size)
    return whole if world == 1 else Share(whole, rank, world)


def meta_train(task: Task, engine: Engine, runner: Runner, seed: int, session: Session) -> None:
    """Train from the session's progress to ``runner.iterations``.

    Of several processes each takes its part of every step. Only the main process, the one whose session has outputs,
    validates, saves and displays.

    Raises:
        Interrupted: on a signal, after a checkpoint.
        RunFailed: if a training metric is not finite.
    """
    algorithm: Algorithm = engine.algorithm
    progress, stop, outputs = session.progress, session.stop, session.outputs
    budget = None if runner.minutes is None else 60 * runner.minutes
    shape = algorithm.train_shape(task.shape)
    rank, world = distributed.rank(), distributed.world_size()

    untrained = not algorithm.learns and progress.validated is None
    if untrained and outputs is not None and outputs.on_validation is not None:
        validate(task, algorithm, runner, stop, outputs)  # a search compares what is not trained, too
    while True:
        out_of_time, ended = False, progress.iteration >= runner.iterations
        if outputs is not None:
            out_of_time = budget is not None and progress.iteration > 0 and not ended and outputs.seconds() >= budget
            if out_of_time and progress.pending:
                outputs.log(train_row(progress))
            if validation_due(progress, runner.validate_every, ended or out_of_time):
                validate(task, algorithm, runner, stop, outputs)
                if progress.validated == progress.iteration:
                    progress.clock.append((progress.iteration, round(outputs.seconds(), 2)))
        # One number for all ranks, so that they stop together; a signal counts before the end of the main one's time.
        signal, over = divmod(distributed.all_reduce_max(2 * (stop.signal or 0) + int(out_of_time)), 2)
        progress.ended_by = "runner.minutes" if over else None
        save = stop.save or (outputs is not None and outputs.unsaved > runner.checkpoint_seconds)
        if outputs is not None and (signal or over or ended or save):
            stop.save = False
            outputs.save(algorithm)
        if signal:
            raise Interrupted(signal)
        if over or ended:
            return
        iteration = progress.iteration
        # Reseeded for every iteration: the step's own randomness, too, is a function of (seed, iteration).
        torch.manual_seed(derived_seed(seed, "train", iteration, stream=10) + rank)
        batch = task.batch("train", meta_batch_indices(iteration, runner.meta_batch, rank, world), shape)
        metrics = engine.meta_step(batch, iteration)
        progress.pending.append(dict(zip(metrics, distributed.average(list(metrics.values())), strict=True)))
        progress.iteration += 1
        row = None
        if progress.iteration % runner.log_every == 0 or progress.iteration == runner.iterations:
            row = train_row(progress)
            if outputs is not None:
                outputs.log(row)
        if outputs is not None:
            outputs.display.step(progress.iteration, row)


def validation_due(progress: Progress, every: int, ended: bool) -> bool:
    """Whether to validate now: every ``every`` iterations (0: never), and once when training has ended."""
    now = progress.iteration
    return every > 0 and now > 0 and (now % every == 0 or ended) and progress.validated != now


def train_row(progress: Progress) -> dict[str, Any]:
    """Means of the metrics since the last row, read back from the device in one transfer.

    Raises:
        RunFailed: if a metric was not finite in any iteration.
    """
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
    """Whether ``value`` is the best so far. A value that is not finite never is; any number is better than one."""
    if not isfinite(value):
        return False
    return best is None or not isfinite(best) or (value > best if higher else value < best)


def validate(task: Task, algorithm: Algorithm, runner: Runner, stop: StopRequest, outputs: Outputs) -> None:
    """Evaluate the learner on the fixed validation tasks and keep it as best.pt if it is the best so far.

    A signal during the evaluation leaves the progress as it was: the resumed run repeats the validation.
    """
    progress = outputs.progress
    try:
        result = evaluate(
            algorithm,
            task,
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
    value = row[f"val/{task.metric}"]
    if better(value, progress.best, task.higher_is_better):
        progress.best, progress.best_iteration = value, progress.iteration
        outputs.save_best(algorithm)
    progress.validated = progress.iteration
    outputs.log(row)
    outputs.display.validation(progress.iteration, value, progress.best)
    if outputs.on_validation is not None:
        outputs.on_validation(row)
