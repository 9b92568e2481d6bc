"""Meta-batches and seeds drawn in blocks are those drawn one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from metarun.config.build import construct, locate
from metarun.config.catalogue import catalogue
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, TaskBatch
from metarun.tasks.regression.sinusoid import Sinusoid
from metarun.tasks.rng import Share, derived_seed
from metarun.training import draws
from metarun.training.draws import MetaBatches, StepSeeds, meta_batch_indices
from tests.composed import composed

IN_BLOCKS = [e.name for e in catalogue("task") if vars(locate(e.section)).get("independent_tasks")]


def tensors(batch: TaskBatch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    batch.map(lambda values: found.append(values) or values)  # type: ignore[func-returns-value]
    return found


def equal(ours: TaskBatch, theirs: TaskBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(ours), tensors(theirs), strict=True))


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_a_family_drawn_in_blocks_gives_the_tasks_that_it_gives_one_meta_batch_at_a_time(name: str) -> None:
    task: Task = construct(composed(f"task={name}")["task"], seed=3)
    batches = MetaBatches(task, task.shape, 3)
    for iteration in (0, 1, 2, 5, 130, 4):
        single = task.batch("train", meta_batch_indices(iteration, 3), task.shape)
        assert equal(batches[iteration], single)
    assert IN_BLOCKS


class Counted(Sinusoid):
    """Counts its draws and notes the number of tasks of each."""

    independent_tasks = True

    def __init__(self) -> None:
        super().__init__(3, shot=2, query=2, test_shots=[], frequency=[1.0, 1.0])
        self.sizes: list[int] = []

    def batch(self, split: Any, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        self.sizes.append(len(indices))
        return super().batch(split, indices, shape)


def test_small_meta_batches_are_drawn_in_few_calls_and_large_ones_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Counted()
    batches = MetaBatches(task, task.shape, 2)
    for iteration in range(2 * draws.BLOCK):
        batches[iteration]
    assert task.sizes == [2, 2 * draws.BLOCK, 2 * draws.BLOCK]

    task.sizes.clear()
    bytes_of_one = sum(values.numel() * values.element_size() for values in tensors(task.batch("train", [0, 1])))
    monkeypatch.setattr(draws, "BLOCK_BYTES", 3 * bytes_of_one)
    task.sizes.clear()
    batches = MetaBatches(task, task.shape, 2)
    for iteration in range(7):
        batches[iteration]
    assert task.sizes == [2, 6, 6, 6]  # iterations 0, 0..2, 3..5 and 6..8


class Derived(Counted):
    """A subclass that does not say how it draws."""


def test_a_subclass_that_does_not_say_how_it_draws_is_drawn_one_meta_batch_at_a_time() -> None:
    task = Derived()
    batches = MetaBatches(task, task.shape, 2)
    for iteration in range(3):
        batches[iteration]
    assert task.sizes == [2, 2, 2]


def test_processes_take_their_shares_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Counted()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        batches = MetaBatches(task, task.shape, 4)
        for iteration in (0, 1, 5):
            whole = range(4 * iteration, 4 * iteration + 4)
            assert equal(batches[iteration], task.batch("train", Share(whole, rank, 2)))


def test_seeds_of_steps_are_those_of_single_iterations() -> None:
    seeds = StepSeeds(7)
    for iteration in (0, 1, draws.BLOCK - 1, draws.BLOCK, 3 * draws.BLOCK + 5, 2):
        assert seeds[iteration] == derived_seed(7, "train", iteration, stream=10)
