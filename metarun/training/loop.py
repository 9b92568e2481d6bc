"""The outer loop: draw a meta-batch, take the outer step, log, validate, keep the best, stop and resume exactly."""

from __future__ import annotations

from math import isfinite
from typing import Any

import torch

from metarun import distributed
from metarun.algorithms.base import Algorithm
from metarun.engine.step import Engine
from metarun.errors import Interrupted, RunFailed
from metarun.evaluation.calibration import Logits
from metarun.evaluation.evaluator import Result, evaluate
from metarun.tasks.base import Task
from metarun.tasks.rng import seed_generators
from metarun.training.draws import MetaBatches, StepSeeds
from metarun.training.session import Outputs, Progress, Session
from metarun.training.settings import Runner
from metarun.training.signals import StopRequest
from metarun.training.updates import OuterUpdates

LIMITS = (None, "runner.minutes", "runner.patience")
"""Keys that can end training before ``runner.iterations``. Processes agree on one of them by its number."""


def meta_train(task: Task, engine: Engine, runner: Runner, seed: int, session: Session) -> None:
    """Train from the session's progress to ``runner.iterations``, or to another limit.

    With several processes, each computes its share of every step. Only the main process, whose session has outputs,
    validates, saves and displays.

    Args:
        task: The task family.
        engine: The engine that takes the outer steps.
        runner: The runner's keys.
        seed: Seed of the run.
        session: Progress, stop request and outputs.

    Raises:
        Interrupted: A signal arrived; raised after a checkpoint.
        RunFailed: A training metric is not finite.
    """
    updates = OuterUpdates(engine.algorithm, runner)
    with updates.active():
        _meta_train(task, engine, runner, seed, session, updates)


def _meta_train(task: Task, engine: Engine, runner: Runner, seed: int, session: Session, updates: OuterUpdates) -> None:
    algorithm: Algorithm = engine.algorithm
    progress, stop, outputs = session.progress, session.stop, session.outputs
    budget = None if runner.minutes is None else 60 * runner.minutes
    meta_batches = MetaBatches(task, algorithm.train_shape(task.shape), runner.meta_batch)
    noise = StepSeeds(seed)

    if outputs is not None and not runner.iterations:
        if progress.validated is None and outputs.on_validation is not None:
            validate(task, algorithm, runner, stop, outputs)  # a search also compares learners that are not trained
        elif task.spec.kind == "classification" and runner.validate_every and progress.temperature is None:
            evaluate_and_calibrate(task, algorithm, runner, stop, progress)  # its metrics select nothing
    while True:
        out_of_time, ended = False, progress.iteration >= runner.iterations
        if outputs is not None:
            out_of_time = budget is not None and progress.iteration > 0 and not ended and outputs.seconds() >= budget
            if out_of_time and progress.pending:
                outputs.log(train_row(progress, updates))
            if validation_due(progress, runner.validate_every, ended or out_of_time):
                validate(task, algorithm, runner, stop, outputs)
                if progress.validated == progress.iteration:
                    progress.clock.append((progress.iteration, round(outputs.seconds(), 2)))
        limit = "runner.minutes" if out_of_time else None
        if outputs is not None and not ended and limit is None and out_of_patience(progress, runner.patience):
            limit = "runner.patience"
            if progress.pending:
                outputs.log(train_row(progress, updates))
        # All ranks agree on one number, so that they stop together; a signal takes precedence over a limit.
        agreed = distributed.all_reduce_max(len(LIMITS) * (stop.signal or 0) + LIMITS.index(limit))
        signal, over = divmod(agreed, len(LIMITS))
        progress.ended_by = LIMITS[over]
        save = stop.save or (outputs is not None and outputs.unsaved > runner.checkpoint_seconds)
        if outputs is not None and (signal or over or ended or save):
            stop.save = False
            outputs.save(algorithm)
        if signal:
            raise Interrupted(signal)
        if over or ended:
            return
        iteration = progress.iteration
        # Reseeding makes the step's own randomness a function of (seed, iteration).
        seed_generators(noise[iteration] + distributed.rank(), task.device)
        batch = meta_batches[iteration]
        log_due = (iteration + 1) % runner.log_every == 0 or iteration + 1 == runner.iterations
        updates.measuring = log_due
        metrics = engine.meta_step(batch, iteration)
        progress.pending.append(dict(zip(metrics, distributed.average(list(metrics.values())), strict=True)))
        progress.iteration += 1
        row = None
        if log_due:
            row = train_row(progress, updates)
            if outputs is not None:
                outputs.log(row)
        if outputs is not None:
            outputs.display.step(progress.iteration, row)


def validation_due(progress: Progress, every: int, ended: bool) -> bool:
    """Return whether to validate now: every ``every`` iterations (0: never), and once when training has ended."""
    now = progress.iteration
    return every > 0 and now > 0 and (now % every == 0 or ended) and progress.validated != now


def out_of_patience(progress: Progress, patience: int | None) -> bool:
    """Return whether the last ``patience`` validations were no better than the best one before; ``None``: no limit."""
    since_best = sum(iteration > (progress.best_iteration or 0) for iteration, _ in progress.clock)
    return patience is not None and since_best >= patience


def train_row(progress: Progress, updates: OuterUpdates) -> dict[str, Any]:
    """Return the means of the metrics since the last row, copied from the device in one transfer.

    The row ends with the learning rate and gradient norm of the last step, unless the algorithm reports its own.

    Raises:
        RunFailed: A metric was not finite in some iteration.
    """
    names = list(progress.pending[0])
    dtype = torch.get_default_dtype()
    values = torch.stack([m[name].to(dtype) for m in progress.pending for name in names])
    table = values.view(-1, len(names)).cpu().double()
    first = progress.iteration - len(progress.pending)
    progress.pending = []
    finite = torch.isfinite(table).all(dim=1)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        culprits = ", ".join(n for n, v in zip(names, table[bad], strict=True) if not torch.isfinite(v))
        raise RunFailed(
            f"{culprits} became NaN or infinite at iteration {first + bad + 1}; "
            "try a smaller algorithm.inner_lr or algorithm.outer_lr"
        )
    means = dict(zip(names, table.mean(0).tolist(), strict=True))
    row = {**means, **{name: value for name, value in updates.row().items() if name not in means}}
    return {"iteration": progress.iteration, **{f"train/{name}": value for name, value in row.items()}}


def better(value: float, best: float | None, higher: bool) -> bool:
    """Return whether ``value`` is the best so far. Non-finite values never are, and any number is better than one."""
    if not isfinite(value):
        return False
    return best is None or not isfinite(best) or (value > best if higher else value < best)


def evaluate_and_calibrate(
    task: Task, algorithm: Algorithm, runner: Runner, stop: StopRequest, progress: Progress
) -> Result | None:
    """Evaluate the learner on the validation tasks and fit its temperature; ``None`` if a signal interrupts it."""
    predictions = Logits()
    try:
        result = evaluate(
            algorithm,
            task,
            "val",
            runner.val_episodes,
            batch=runner.eval_batch,
            stopped=lambda: stop.signal,
            on_predictions=predictions.add,
        )
    except Interrupted:
        return None
    progress.temperature = predictions.temperature()
    return result


def validate(task: Task, algorithm: Algorithm, runner: Runner, stop: StopRequest, outputs: Outputs) -> None:
    """Evaluate the learner on the fixed validation tasks and save it as best.pt if it is the best so far.

    If a signal interrupts the evaluation, the progress is unchanged, and the resumed run repeats the validation.
    """
    progress = outputs.progress
    result = evaluate_and_calibrate(task, algorithm, runner, stop, progress)
    if result is None:
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
