"""Benchmark of training on synthetic tables in steps per second, against the loop of nanoTabPFN."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from rich.table import Table

from metarun.bench.peers import nanotabpfn
from metarun.bench.speeds import Speed, sample, speed_table
from metarun.config.build import build
from metarun.config.compose import compose
from metarun.engine.step import Engine
from metarun.tasks.episode import Labelled, TaskBatch
from metarun.training.updates import OuterUpdates

TABLES, SUPPORT, QUERIES, COLUMNS, WAY = 32, 100, 50, 5, 2
"""Shape of a meta-batch, that of the tables on which nanoTabPFN is trained."""


def random_tables(tables: int) -> TaskBatch:
    """Return a meta-batch of ``tables`` random tables."""
    noise = torch.Generator().manual_seed(0)
    parts = []
    for rows in (SUPPORT, QUERIES):
        x = torch.randn(tables, rows, COLUMNS, generator=noise)
        parts.append(Labelled(x, (x.sum(-1) > 0).long(), WAY))
    return TaskBatch(*parts)


def tables(rounds: int, device: torch.device, count: int = TABLES) -> list[Speed]:
    """Measure the speed of training steps, of metarun's table transformer by default and as wide as nanoTabPFN.

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
        sample(speeds, rounds)
    return speeds


def tables_table(speeds: list[Speed]) -> Table:
    """Return a table of speeds, with the ratio to nanoTabPFN."""
    return speed_table("tables   training steps a second", speeds, nanotabpfn.NAME, speeds)
