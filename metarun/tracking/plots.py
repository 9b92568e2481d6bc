"""Plots of a run: learning curve, adaptation curve, and the task family's own figure and film."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from metarun.algorithms.base import Algorithm
from metarun.tasks.base import Task
from metarun.tracking.rundir import RunDirectory


def draw_run(directory: RunDirectory, summary: dict[str, Any], task: Task, algorithm: Algorithm) -> Iterator[Path]:
    """Write each plot as a PNG, and a film as a GIF, to ``plots/``, and yield their paths."""
    directory.plots.mkdir(exist_ok=True)
    figures = {
        "learning_curve": learning_curve(list(directory.rows()), task.metric),
        "adaptation_curve": adaptation_curve(summary, task.metric),
        "what_was_learned": task.picture(algorithm),
    }
    for name, figure in figures.items():
        if figure is not None:
            path = directory.plots / f"{name}.png"
            figure.savefig(path, dpi=110)
            yield path
    if frames := task.film(algorithm):
        path = directory.plots / "film.gif"
        write_film(frames, path)
        yield path


def write_film(frames: Sequence[NDArray[np.uint8]], path: Path) -> None:
    """Write a looping GIF of at most 10 seconds; the last frame stays for one second."""
    every = -(-len(frames) // 200)
    first, *others = (Image.fromarray(frame) for frame in [*frames[:-1:every], frames[-1]])
    times = [50 * every if len(frames) > 50 else 200] * len(others) + [1000]
    first.save(path, save_all=True, append_images=others, duration=times, loop=0, optimize=True)


def learning_curve(rows: list[dict[str, Any]], metric: str) -> Figure | None:
    """Plot the metric over iterations: meta-training, validation with 95 % intervals, and the test result."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.subplots()
    train = [(r["iteration"], r[f"train/{metric}"]) for r in rows if f"train/{metric}" in r]
    val = [(r["iteration"], r[f"val/{metric}"], r[f"val/{metric}_ci95"]) for r in rows if f"val/{metric}" in r]
    test = [(r["iteration"], r[f"test/{metric}"], r[f"test/{metric}_ci95"]) for r in rows if f"test/{metric}" in r]
    if not train and not val:
        return None
    if train:
        ax.plot(*zip(*train, strict=True), color="0.7", lw=1, label="meta-train (its own episodes)")
    if val:
        at, mean, ci = zip(*val, strict=True)
        ax.plot(at, mean, "o-", ms=3, color="tab:blue", label="meta-validation")
        low, high = ([m + sign * c for m, c in zip(mean, ci, strict=True)] for sign in (-1, 1))
        ax.fill_between(at, low, high, color="tab:blue", alpha=0.2, lw=0)
    if test:
        ax.errorbar(*test[-1][:2], yerr=test[-1][2], fmt="*", color="tab:red", ms=10, capsize=3, label="meta-test")
    ax.set(xlabel="iteration", ylabel=metric)
    ax.grid(alpha=0.3)
    ax.legend()
    return figure


def adaptation_curve(summary: dict[str, Any], metric: str) -> Figure | None:
    """Plot the test metric after 0..k adaptation steps with 95 % intervals; ``None`` for learners without steps.

    For RL learners with a hidden state, the curve is over the episodes of a trial.
    """
    points = summary["adaptation"]
    if len(points) < 2:
        return None
    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.subplots()
    trial = "episode" in points[0]
    steps, means = [p["episode" if trial else "step"] for p in points], [p["mean"] for p in points]
    ax.errorbar(steps, means, yerr=[p["ci95"] for p in points], fmt="o-", ms=4, capsize=3, label="meta-test")
    for name, value in () if trial else summary.get("references", {}).items():  # references hold for whole trials
        ax.axhline(value, ls="--", color="0.5", lw=1)
        ax.annotate(name, (steps[-1], value), ha="right", va="bottom", color="0.4")
    ax.set(xlabel="episode of the trial" if trial else "adaptation steps", ylabel=metric)
    ax.grid(alpha=0.3)
    return figure
