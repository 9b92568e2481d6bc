"""What a run settles before its first step and keeps in its directory: facts, threads, plan and precision."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from metarun import distributed
from metarun.algorithms.base import Algorithm
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.engine import precision
from metarun.engine.step import Engine
from metarun.engine.tuning import Tuned, tuned
from metarun.errors import UserError, require
from metarun.tasks.base import Task
from metarun.tasks.inputs import Inputs
from metarun.tasks.rng import derived_seed
from metarun.tracking.provenance import provenance
from metarun.tracking.rundir import RunDirectory, now
from metarun.training.device import choose_threads
from metarun.training.loop import meta_batch_indices
from metarun.training.settings import Runner

log = logging.getLogger("metarun")

PLANNED = {"runner.meta_batch", "runner.chunk", "runner.precision", "runner.device", "runner.tune_above"}
"""Keys that the plan of a step depends on. When one of them changes, the plan is chosen again."""


def store_facts(
    directory: RunDirectory, task: Task, algorithm: Algorithm, config: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Write what is known of a new run before it starts: its configuration, inputs, data and provenance."""
    directory.write_status("running")
    directory.write_config(config)
    if isinstance(algorithm, SupervisedAlgorithm):
        directory.write_inputs(Inputs.of(task).as_dict())
    directory.write_data(task.record().as_dict())
    directory.write_meta(**provenance(), **facts, start=now(), end=None)


def announce(directory: RunDirectory, algorithm: Algorithm, facts: Mapping[str, Any], not_trained: bool) -> None:
    """Log where the run lies, which values are tuned for its task, and that it is ``not_trained`` if so."""
    log.info("run directory %s", directory.path)
    if values := facts.get("tuned"):
        log.info("tuned for %s: %s", facts["choices"]["task"], ", ".join(f"{k}={v}" for k, v in values.items()))
    if not_trained:
        log.info(
            "%s has no meta-parameters, so there is nothing to meta-train: evaluated at once, as by "
            "runner.iterations=0",
            facts.get("choices", {}).get("algorithm", type(algorithm).__name__),
        )


def require_even_shares(algorithm: Algorithm, runner: Runner) -> None:
    """Raise :class:`UserError` if the meta-batch cannot be divided among the processes."""
    world, tasks = max(distributed.world_size(), runner.devices), runner.meta_batch
    require(
        tasks % world == 0,
        f"runner.meta_batch={tasks} cannot be shared evenly by {world} processes (runner.devices); "
        f"{tasks - tasks % world or world} or {tasks - tasks % world + world} can",
    )
    require(
        world == 1 or not algorithm.needs_full_meta_batch,
        f"{type(algorithm).__name__}, as configured here, needs each meta-batch whole; use runner.devices=1",
    )


def threads_for(algorithm: Algorithm, task: Task, runner: Runner, device: torch.device) -> int:
    """Number of CPU threads for a run that has not chosen one."""
    if device.type != "cpu":
        return torch.get_num_threads()
    _, processes = distributed.local_rank_and_size()
    return choose_threads(algorithm, task, runner.meta_batch // distributed.world_size(), processes)


def first_meta_batch(algorithm: Algorithm, task: Task, runner: Runner) -> Any:
    """This process's part of the first meta-batch, on which steps are timed and their precision is measured."""
    indices = meta_batch_indices(0, runner.meta_batch, distributed.rank(), distributed.world_size())
    return task.batch("train", indices, algorithm.train_shape(task.shape))


def plan_steps(engine: Engine, task: Task, runner: Runner, directory: RunDirectory, iteration: int) -> None:
    """Set the engine's plan: the one that the run had before it was stopped, or the fastest here.

    Args:
        engine: The engine whose plan is set.
        task: The task family.
        runner: The runner's keys.
        directory: The run directory, whose meta.json keeps the plan.
        iteration: The iteration that the run resumes at.
    """
    meta = directory.meta()
    kept = meta.get("step")
    if kept is not None:
        try:
            step: Tuned | None = Tuned.of(kept)
        except (TypeError, KeyError):
            raise UserError(f"{directory.path / 'meta.json'} is damaged: 'step' is not what a run writes") from None
    elif not runner.iterations or (iteration and "step" not in meta):
        return
    else:
        batch = first_meta_batch(engine.algorithm, task, runner)
        step = tuned(engine.algorithm, batch, runner.iterations, runner.chunk, runner.tune_above)
        if step is not None:
            directory.write_meta(step=step.as_dict())
    if step is not None:
        engine.plan = step.plan
        log.info("step: %s", step)


def measure_precision(engine: Engine, task: Task, runner: Runner, seed: int, directory: RunDirectory) -> None:
    """Keep in meta.json the relative error of the first outer gradient in a reduced precision.

    Measured once, on this process's part of the first meta-batch, and only for learners whose precision is reduced.
    """
    algorithm = engine.algorithm
    if algorithm.precision == "float32" or not runner.iterations or "gradient_error" in directory.meta():
        return
    if not isinstance(algorithm, SupervisedAlgorithm) or algorithm.optimizer is None:
        return
    batch = first_meta_batch(algorithm, task, runner)
    seed = derived_seed(seed, "train", 0, stream=10)
    directory.write_meta(gradient_error=precision.measured(algorithm, batch, seed, engine.plan))
