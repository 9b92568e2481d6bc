"""Collection of learning histories: a learner of its own for each of many tasks, all of whose steps are kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from metarun.algorithms.rl.base import RLAlgorithm
from metarun.config.build import build
from metarun.config.check import check
from metarun.config.compose import Composed, named
from metarun.errors import UserError, require
from metarun.progress import Progress
from metarun.tasks.rl.histories import HistoryEnv, path_of, write
from metarun.tasks.rng import derived_seed
from metarun.tracking.files import make_output_folder

log = logging.getLogger("metarun")


def collect_histories(composed: Composed, tasks: int, folder: Path) -> Iterator[str]:
    """Train a new learner on each of the first meta-training tasks, and write its learning history.

    A learner takes ``runner.iterations`` outer steps on its task alone; of learners that adapt, the steps of adaptation
    are part of the history. Histories that are in the folder already are kept, so that the same command continues. All
    learners start from the same parameters, with random numbers of their own.

    Args:
        composed: The configuration of a learner.
        tasks: Number of tasks.
        folder: Where to write them.

    Yields:
        Lines to print.

    Raises:
        UserError: The algorithm is no RL algorithm that learns, or the folder cannot be made.
    """
    config = named(composed)
    check(config)
    make_output_folder(folder)
    made = 0
    with Progress("collecting", tasks, "tasks") as progress:
        for number in range(tasks):
            if not path_of(folder, number).exists():
                history = learning_history(composed, number, folder)
                made += 1
                log.debug("task %d: %d streams of %d steps", number, *history)
            progress.update(1)
    yield f"collected  {made} histories in {folder}" + (f"; {tasks - made} were there" if made < tasks else "")
    yield f"use        metarun algorithm=ad algorithm.histories={folder}"


def learning_history(composed: Composed, number: int, folder: Path) -> tuple[int, int]:
    """Write the history of one task; return its numbers of streams and of steps."""
    experiment = build(named(composed), composed.facts)
    task, algorithm, iterations = experiment.task, experiment.algorithm, experiment.runner.iterations
    if not isinstance(algorithm, RLAlgorithm) or not algorithm.learns:
        raise UserError(
            f"{type(algorithm).__name__} leaves no learning history; one that does: algorithm=pretrain_trpo"
        )
    require(iterations > 0, "runner.iterations=0: a learning history needs outer steps")
    if experiment.runner.threads:
        torch.set_num_threads(experiment.runner.threads)
    torch.manual_seed(derived_seed(task.seed, "train", number, stream=11))
    env = HistoryEnv(task.batch("train", [number]), task.spec)
    for iteration in range(iterations):
        algorithm.meta_step(env, iteration)
    history = env.history()
    write(folder, number, history, task.spec, env.horizon)
    return history.shape[0], history.shape[1]
