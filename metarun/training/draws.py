"""The meta-batches of a run and the seeds of its steps, drawn in blocks of several iterations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metarun import distributed
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, TaskBatch
from metarun.tasks.rng import Share, derived_seeds

BLOCK = 128
"""Largest number of iterations of a block."""
BLOCK_BYTES = 1 << 20
"""Largest size of a block of meta-batches."""


def meta_batch_indices(iteration: int, size: int, rank: int = 0, world: int = 1, count: int = 1) -> range | Share:
    """Return the indices of the tasks of one meta-batch, or of several in a row.

    Rank r of ``world`` ranks takes every ``world``-th task, so that their union is the same for any number of ranks.

    Args:
        iteration: Number of the (first) meta-batch, from 0.
        size: Tasks of a meta-batch.
        rank: Number of this process.
        world: Number of processes.
        count: Number of meta-batches.
    """
    whole = range(iteration * size, (iteration + count) * size)
    return whole if world == 1 else Share(whole, rank, world)


class MetaBatches:
    """This process's shares of the meta-batches of a run, by iteration. Tasks of several sizes are a list of batches.

    The time to draw a few small tasks is mostly that of calling NumPy and torch. Meta-batches of a family with
    ``independent_tasks`` are therefore drawn in blocks of as many iterations as fit into :data:`BLOCK_BYTES`. A block
    begins at a multiple of its length, so that a resumed run draws the same blocks.

    Args:
        task: The task family.
        shape: Size of the episodes; ``None`` in RL.
        size: Tasks of a meta-batch, over all processes.
    """

    def __init__(self, task: Task, shape: EpisodeShape | None, size: int) -> None:
        self._task, self._shape, self._size = task, shape, size
        # Of the class itself: a subclass may draw its tasks in another way.
        self._length = None if vars(type(task)).get("independent_tasks") else 1
        """Iterations of a block; ``None`` until the size of a meta-batch is known."""
        self._first = 0
        self._block: TaskBatch | None = None

    def __getitem__(self, iteration: int) -> Any:
        if self._length is None:
            batch = self._draw(iteration)
            self._length = min(BLOCK, max(1, BLOCK_BYTES // size_in_bytes(batch)))
            return batch
        if self._length == 1:
            return self._draw(iteration)
        place = iteration % self._length
        if self._block is None or self._first != iteration - place:
            self._first = iteration - place
            self._block = self._draw(self._first, self._length)
        tasks = self._size // distributed.world_size()
        return self._block.map(lambda values: values[place * tasks : (place + 1) * tasks])

    def _draw(self, iteration: int, count: int = 1) -> Any:
        indices = meta_batch_indices(iteration, self._size, distributed.rank(), distributed.world_size(), count)
        if self._shape is not None and self._shape.varied:
            return [batch for _, batch in self._task.batches("train", indices, self._shape)]
        return self._task.batch("train", indices, self._shape)


def size_in_bytes(batch: TaskBatch) -> int:
    """Return the size of all tensors of a batch of tasks."""
    sizes: list[int] = []

    def measure(values: Tensor) -> Tensor:
        sizes.append(values.numel() * values.element_size())
        return values

    batch.map(measure)
    return sum(sizes)


class StepSeeds:
    """Seeds of the random numbers that a step draws, a pure function of the run's seed and the iteration.

    Args:
        seed: Seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._first = 0
        self._block: list[int] = []

    def __getitem__(self, iteration: int) -> int:
        place = iteration % BLOCK
        if not self._block or self._first != iteration - place:
            self._first = iteration - place
            self._block = derived_seeds(self._seed, "train", range(self._first, self._first + BLOCK), stream=10)
        return self._block[place]
