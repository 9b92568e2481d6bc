"""Benchmark of training on synthetic tables, against the loop of nanoTabPFN, and of predicting a table."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from rich.table import Table

from metarun.algorithms.amortised.prior_fitted import PriorFitted
from metarun.bench.peers import nanotabpfn
from metarun.bench.speeds import Speed, sample, speed_table
from metarun.config.build import build
from metarun.config.compose import compose
from metarun.engine.step import Engine
from metarun.tasks.episode import Labelled, TaskBatch
from metarun.training.updates import OuterUpdates

TABLES, SUPPORT, QUERIES, COLUMNS, WAY = 32, 100, 50, 5, 2
"""Shape of a meta-batch, that of the tables on which nanoTabPFN is trained."""
KNOWN, ASKED, WIDE = 150, 1000, 10
"""Labelled rows, predicted rows and columns of the table that is predicted: the most that the default prior has."""


def random_tables(tables: int, support: int = SUPPORT, queries: int = QUERIES, columns: int = COLUMNS) -> TaskBatch:
    """Return a meta-batch of ``tables`` random tables."""
    noise = torch.Generator().manual_seed(0)
    parts = []
    for rows in (support, queries):
        x = torch.randn(tables, rows, columns, generator=noise)
        parts.append(Labelled(x, (x.sum(-1) > 0).long(), WAY))
    return TaskBatch(*parts)


def tables(rounds: int, device: torch.device, count: int = TABLES) -> list[Speed]:
    """Measure the speed of training steps, of metarun's table transformer by default and as wide as nanoTabPFN.

    The last one measured is not a training step: the default learner predicts the rows of one table.

    Args:
        rounds: Number of rounds.
        device: Device to compute on.
        count: Tables per step.
    """
    batch = random_tables(count).map(lambda values: values.to(device))
    about = f"{count} tables of {SUPPORT} + {QUERIES} rows and {COLUMNS} columns"
    speeds = [Speed(nanotabpfn.NAME, f"{about}: its loop", nanotabpfn.training(batch, device))]
    with ExitStack() as stack:
        shape = ["task=tabular/prior", f"task.way={WAY}", f"task.columns=[{COLUMNS},{COLUMNS}]"]
        for name, words in (("metarun", []), ("metarun, as wide", [f"model.width={nanotabpfn.WIDTH}"])):
            run = build(compose([*shape, *words, f"runner.device={device}", "name=tables"]).config)
            stack.enter_context(OuterUpdates(run.algorithm, run.runner).active())

            def step(engine: Engine = run.engine) -> int:
                engine.meta_step(batch, 0)
                return 1

            sizes = f"tokens of {run.config['model']['width']} and {run.config['model']['row_width']}"
            speeds.append(Speed(name, f"the same: a training step, {sizes}", step))
        learner = build(compose(["task=tabular/prior", f"runner.device={device}", "name=tables"]).config).algorithm
        assert isinstance(learner, PriorFitted)
        one = random_tables(1, KNOWN, ASKED, WIDE).map(lambda values: values.to(device))

        @torch.no_grad()
        def predict() -> int:
            learner.eval()
            learner.adapt(one.support)(one.query.x).sum().item()
            return 1

        about = f"predictions of {ASKED:,} rows from {KNOWN} with {WIDE} columns"
        speeds.append(Speed("metarun, predicting", about, predict))
        sample(speeds, rounds)
    return speeds


def tables_table(speeds: list[Speed]) -> Table:
    """Return a table of speeds, with the ratio of training steps to nanoTabPFN's."""
    return speed_table("tables   training steps a second", speeds, nanotabpfn.NAME, speeds[:-1])
