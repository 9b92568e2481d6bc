"""The content of a W&B run: rows with their steps, final values, the table of test tasks, images, a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from math import isfinite
from pathlib import Path
from typing import Any

from metarun.tracking.rundir import RunDirectory
from metarun.tracking.sinks import Row

SHOWN = ("iterations", "best_iteration", "ended_by", "wall_s", "parameters", "peak_mb")
"""Entries of a run's summary that its W&B summary holds. The test result is there already, as its last row."""


def step_after(step: int, row: Row) -> int:
    """Return the W&B step of ``row``, given the step of the previous row (-1 if there is none)."""
    return max(step + 1, 10 * int(row.get("iteration", 0)))


def numbered(directory: Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows of ``directory/metrics.jsonl`` with their W&B steps."""
    step = -1
    for row in RunDirectory(directory).rows():
        step = step_after(step, row)
        yield step, row


def final_values(directory: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what W&B's summary holds beside the last value of each column."""
    values = {key: summary[key] for key in SHOWN if summary.get(key) is not None}
    return values | best_validation(directory, summary)


def best_validation(directory: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of the best validation, its names preceded by ``best/``; empty if none is finite."""
    column = f"val/{summary.get('metric')}"
    rows = [row for row in RunDirectory(directory).rows(b'"val/') if isfinite(row.get(column, float("nan")))]
    if not rows:
        return {}
    best = (max if summary.get("higher_is_better", True) else min)(rows, key=lambda row: row[column])
    return {f"best/{name.removeprefix('val/')}": value for name, value in best.items()}


def test_table(directory: Path) -> Any:
    """Return a W&B table of the test tasks, ``None`` without any: each metric after adaptation and before."""
    import wandb

    columns: dict[str, list[Any]] = {}
    for name, values in RunDirectory(directory).episodes().items():
        columns[name] = values[:, -1].tolist()
        if values.shape[1] > 1:
            columns[f"{name} before adaptation"] = values[:, 0].tolist()
    rows = [[task, *values] for task, values in enumerate(zip_longest(*columns.values()))]
    return wandb.Table(columns=["task", *columns], data=rows) if rows else None


def image(path: Path) -> Any:
    """Return a PNG or a GIF as W&B logs it."""
    import wandb

    return wandb.Video(str(path)) if path.suffix == ".gif" else wandb.Image(str(path))


def model_artifact(name: str, path: Path, metadata: Mapping[str, Any]) -> Any:
    """Return a checkpoint as a W&B artifact."""
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type="model", metadata=dict(metadata))
    artifact.add_file(str(path))
    return artifact
