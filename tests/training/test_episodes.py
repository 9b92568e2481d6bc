"""The same seed gives the same episodes, for any number of processes and after a resume."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from metarun.config.build import build
from metarun.config.compose import compose
from metarun.errors import Interrupted
from metarun.tasks.episode import EpisodeShape, TaskBatch
from metarun.tasks.regression.sinusoid import Sinusoid
from metarun.tracking.rundir import RunDirectory
from metarun.training.draws import meta_batch_indices


def draw(rank: int, world: int, results: Any) -> None:
    torch.set_num_threads(1)
    task = Sinusoid(3, shot=5, query=5, test_shots=[], frequency=[1.0, 1.0])
    for iteration in range(4):
        indices = meta_batch_indices(iteration, 8, rank, world)
        batch = task.batch("train", indices)
        for i, x, y in zip(indices, batch.support.x, batch.query.y, strict=True):
            results[i] = (x.tolist(), y.tolist())


def test_meta_batches_follow_one_another_and_processes_share_each_of_them() -> None:
    for world in (1, 2, 4):
        shares = [[[*meta_batch_indices(iteration, 8, rank, world)] for rank in range(world)] for iteration in range(3)]
        assert all(len(share) == 8 // world for batch in shares for share in batch)
        for i, batch in enumerate(shares):
            assert sorted(chain(*batch)) == [*range(8 * i, 8 * i + 8)]


@pytest.mark.slow
def test_two_processes_draw_what_one_draws() -> None:
    with mp.Manager() as manager:
        alone, together = manager.dict(), manager.dict()
        draw(0, 1, alone)
        context = mp.get_context("spawn")
        workers = [context.Process(target=draw, args=(rank, 2, together)) for rank in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert len(alone) == 32
        assert dict(alone) == dict(together)


class Recorded(Sinusoid):
    """Remembers the episodes it handed out for training; can be made to stop the run at one of them."""

    stop_at: int | None = None

    def __init__(
        self, seed: int, *, shot: int, query: int, test_shots: Sequence[int], frequency: Sequence[float]
    ) -> None:
        super().__init__(seed, shot=shot, query=query, test_shots=test_shots, frequency=frequency)
        self.drawn: list[torch.Tensor] = []

    def batch(self, split: Any, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        batch = super().batch(split, indices, shape)
        if split == "train" and batch.support.x.device.type != "meta":
            self.drawn.append(batch.query.y)
            if len(self.drawn) == self.stop_at:
                signal.raise_signal(signal.SIGTERM)
        return batch


def test_a_resumed_run_draws_what_the_undisturbed_one_draws(tmp_path: Path) -> None:
    words = ["task=regression/sinusoid", "runner.iterations=30", "runner.validate_every=0", "runner.plots=false",
             "runner.test_episodes=2", "tracker.wandb=disabled", "name=x", "runner.threads=1"]  # fmt: skip
    config = compose(words).config
    config["task"]["_target_"] = f"{__name__}.Recorded"

    def drawn(directory: RunDirectory, stop_at: int | None = None) -> list[torch.Tensor]:
        experiment = build(config)
        experiment.task.stop_at = stop_at  # type: ignore[attr-defined]
        if stop_at is None:
            experiment.run(directory)
        else:
            with pytest.raises(Interrupted):
                experiment.run(directory)
        return experiment.task.drawn  # type: ignore[attr-defined]

    whole = drawn(RunDirectory.create(tmp_path, "whole", 0))
    parted = RunDirectory.create(tmp_path, "parted", 0)
    first = drawn(parted, stop_at=11)
    rest = drawn(parted)
    assert (len(first), len(rest)) == (11, 20)  # a new run draws its first meta-batch once more, to settle its step
    assert all(torch.equal(a, b) for a, b in zip(whole, first + rest, strict=True))
    assert parted.metrics.read_bytes() == (tmp_path / "whole").glob("*/metrics.jsonl").__next__().read_bytes()
