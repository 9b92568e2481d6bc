"""Setup of a run before its first step, stored in its directory: facts, threads, execution plan and precision."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from metarun import distributed, stopping
from metarun.algorithms.base import Algorithm
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.engine import precision
from metarun.engine.step import Engine
from metarun.engine.tuning import Tuned, tuned
from metarun.errors import UserError, require
from metarun.models.norm import is_initial
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape
from metarun.tasks.inputs import Inputs
from metarun.tasks.rng import derived_seed
from metarun.tracking.provenance import provenance
from metarun.tracking.rundir import RunDirectory, now
from metarun.training.draws import meta_batch_indices
from metarun.training.settings import Runner
from metarun.training.threads import choose_threads

log = logging.getLogger("metarun")

OBSERVED_BATCHES = 100
"""Number of meta-batches from which a run without iterations takes the statistics of meta-training features."""
PLANNED = {"runner.meta_batch", "runner.chunk", "runner.precision", "runner.device", "runner.tune_above"}
"""Keys on which the execution plan of a step depends. If one of them changes, the plan is chosen again."""


def store_facts(
    directory: RunDirectory, task: Task, algorithm: Algorithm, config: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Write the facts of a new run before it starts: its configuration, inputs, data and provenance."""
    directory.write_status("running")
    directory.write_config(config)
    if isinstance(algorithm, SupervisedAlgorithm):
        directory.write_inputs(Inputs.of(task).as_dict())
    directory.write_data(task.record().as_dict())
    directory.write_meta(**provenance(), **facts, start=now(), end=None)


def store_resumption(directory: RunDirectory, iteration: int) -> None:
    """Add to meta.json where and by what a run is continued, and warn if its packages are not those of before."""
    meta, made = directory.meta(), provenance()
    resumed = meta.get("resumed", [])
    before, present = (resumed[-1] if resumed else meta).get("versions") or {}, made["versions"]
    moved = [f"{name} {before[name]} -> {present.get(name)}" for name in before if before[name] != present.get(name)]
    if moved:
        log.warning(
            "the run goes on under other versions, so its numbers may differ from here on: %s", ", ".join(moved)
        )
    kept = {key: made[key] for key in ("git", "python", "versions", "host")}
    directory.write_meta(resumed=[*resumed, {"start": now(), "iteration": iteration, **kept}])


def announce(directory: RunDirectory, algorithm: Algorithm, facts: Mapping[str, Any], not_trained: bool) -> None:
    """Log the run directory, the values that are tuned for its task, and whether the run is ``not_trained``."""
    log.info("run directory %s", directory.path)
    if values := facts.get("tuned"):
        log.info("tuned for %s: %s", facts["choices"]["task"], ", ".join(f"{k}={v}" for k, v in values.items()))
    if not_trained:
        log.info(
            "%s has no meta-parameters to train; it is evaluated at once, as with runner.iterations=0",
            facts.get("choices", {}).get("algorithm", type(algorithm).__name__),
        )


def require_consistent(task: Task, algorithm: Algorithm, runner: Runner) -> None:
    """Raise :class:`UserError` if the runner's keys do not fit the task or the algorithm."""
    require(
        task.held_out_val or not runner.selects_best,
        "runner.select=best would select on classes that this task meta-trains on; use runner.select=last",
    )
    require(
        runner.patience is None or runner.validate_every > 0,
        "runner.patience counts validations, and runner.validate_every=0 makes none",
    )
    require(
        runner.patience is None or task.held_out_val,
        "runner.patience would stop by classes that this task meta-trains on; use runner.patience=null",
    )
    require(
        not (runner.max_grad_norm or runner.weight_decay) or bool(algorithm.optimizers()) or not algorithm.learns,
        f"runner.max_grad_norm and runner.weight_decay act on outer optimizers; {type(algorithm).__name__}, as "
        "configured here, has none",
    )
    require(
        algorithm.accepts(task.shape),
        f"task.episodes=varied: every episode has another number of classes, and {type(algorithm).__name__}, as "
        "configured here, has a head of fixed size; use a learner without one, such as protonet",
    )
    shape = algorithm.train_shape(task.shape)
    require(
        not is_varied(shape) or not algorithm.needs_balanced,
        f"task.episodes=varied: {type(algorithm).__name__}, as configured here, meta-trains on as many examples of "
        "each class; set algorithm.train_way, which trains on balanced episodes",
    )
    require(
        not is_varied(shape) or not algorithm.needs_full_meta_batch or runner.meta_batch == 1,
        f"task.episodes=varied: {type(algorithm).__name__}, as configured here, needs the full meta-batch at once, and "
        "tasks of different sizes are computed one after another; use runner.meta_batch=1",
    )
    require_even_shares(algorithm, runner)


def require_even_shares(algorithm: Algorithm, runner: Runner) -> None:
    """Raise :class:`UserError` if the meta-batch cannot be divided among the processes."""
    world, tasks = max(distributed.world_size(), runner.devices), runner.meta_batch
    require(
        tasks % world == 0,
        f"runner.meta_batch={tasks} cannot be divided evenly among {world} processes (runner.devices); "
        f"use {tasks - tasks % world or world} or {tasks - tasks % world + world}",
    )
    require(
        world == 1 or not algorithm.needs_full_meta_batch,
        f"{type(algorithm).__name__}, as configured here, needs the full meta-batch; use runner.devices=1",
    )


def threads_for(algorithm: Algorithm, task: Task, runner: Runner, device: torch.device) -> int:
    """Return the number of CPU threads for a run that does not set it."""
    if device.type != "cpu":
        return torch.get_num_threads()
    _, processes = distributed.local_rank_and_size()
    if not runner.iterations:  # the run is tested only: a family that embeds its data at first use embeds no others
        tasks = 1 if is_varied(task.shape) else runner.eval_batch
        draw = partial(task.batch, "test", range(tasks), task.shape)
        return choose_threads(algorithm, draw, processes, lambda learner, batch: learner.evaluate(batch))
    return choose_threads(algorithm, lambda: first_meta_batch(algorithm, task, runner), processes)


def first_meta_batch(algorithm: Algorithm, task: Task, runner: Runner) -> Any:
    """Return this process's share of the first meta-batch, on which steps are timed and their precision is measured.

    Of varied episodes it is the first task.
    """
    shape = algorithm.train_shape(task.shape)
    indices = meta_batch_indices(0, runner.meta_batch, distributed.rank(), distributed.world_size())
    return task.batch("train", indices[:1] if is_varied(shape) else indices, shape)


def plan_steps(engine: Engine, task: Task, runner: Runner, directory: RunDirectory, iteration: int) -> None:
    """Set the engine's execution plan: the stored one of a resumed run, or the fastest one here.

    Args:
        engine: The engine whose plan is set.
        task: The task family.
        runner: The runner's keys.
        directory: The run directory, whose meta.json stores the plan.
        iteration: The iteration from which the run continues.
    """
    meta = directory.meta()
    kept = meta.get("step")
    varied = is_varied(engine.algorithm.train_shape(task.shape))  # a recording would be of one size
    if kept is not None:
        try:
            step: Tuned | None = Tuned.of(kept)
        except (TypeError, KeyError):
            raise UserError(f"{directory.path / 'meta.json'} is damaged: 'step' has an invalid value") from None
    elif not runner.iterations or (iteration and "step" not in meta) or varied:
        return
    else:
        batch = first_meta_batch(engine.algorithm, task, runner)
        step = tuned(engine, batch, runner.iterations, runner.chunk, runner.tune_above)
        if step is not None:
            directory.write_meta(step=step.as_dict())
    if step is not None:
        engine.plan = step.plan
        log.info("step: %s", step)


def take_statistics(algorithm: Algorithm, task: Task, runner: Runner) -> None:
    """Prepare the statistics that a learner takes from meta-training tasks, before the first iteration.

    A run without iterations takes them from :data:`OBSERVED_BATCHES` meta-batches, without training. Otherwise they
    begin anew, also if the run was evaluated without iterations before. Statistics of normalisation layers are not
    taken: a warning says so.

    Raises:
        Interrupted: A signal asked the process to stop.
    """
    if not isinstance(algorithm, SupervisedAlgorithm):
        return
    initial = sum(is_initial(layer) for layer in algorithm.modules())
    frozen = getattr(algorithm, "norm", None) == "frozen"
    if initial and (frozen or not runner.iterations):
        log.warning(
            "%s, so %d normalisation layers use their initial statistics, mean 0 and variance 1; "
            "algorithm.norm=transductive uses those of each batch",
            "algorithm.norm=frozen and the model is new" if frozen else "nothing is meta-trained", initial,
        )  # fmt: skip
    if not algorithm.keeps_statistics:
        return

    def batches() -> Iterator[Any]:
        shape, size = algorithm.train_shape(task.shape), runner.meta_batch
        for iteration in range(OBSERVED_BATCHES if not runner.iterations else 0):
            stopping.raise_if_requested()
            yield from (batch for _, batch in task.batches("train", meta_batch_indices(iteration, size), shape))

    if not runner.iterations:
        log.info("nothing is meta-trained: the mean of the features is taken from %d meta-batches", OBSERVED_BATCHES)
    algorithm.observe(batches())


def is_varied(shape: EpisodeShape | None) -> bool:
    """Return whether episodes of a shape have different sizes."""
    return shape is not None and shape.varied


def measure_precision(engine: Engine, task: Task, runner: Runner, seed: int, directory: RunDirectory) -> None:
    """Store the relative error of the first outer gradient in reduced precision in meta.json.

    It is measured once, on this process's share of the first meta-batch, and only for learners with reduced precision.
    """
    algorithm = engine.algorithm
    if algorithm.precision == "float32" or not runner.iterations or "gradient_error" in directory.meta():
        return
    if not isinstance(algorithm, SupervisedAlgorithm) or algorithm.optimizer is None:
        return
    batch = first_meta_batch(algorithm, task, runner)
    seed = derived_seed(seed, "train", 0, stream=10)
    directory.write_meta(gradient_error=precision.measured(algorithm, batch, seed, engine.plan))
