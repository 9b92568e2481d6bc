"""Plots of a run: learning curve, adaptation curve, and the task family's own figure and film."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from metarun import style
from metarun.algorithms.base import Algorithm
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape
from metarun.tracking.rundir import RunDirectory


def draw_run(directory: RunDirectory, summary: dict[str, Any], task: Task, algorithm: Algorithm) -> Iterator[Path]:
    """Write each plot as a PNG, and a film as a GIF, to ``plots/``, and yield their paths."""
    directory.plots.mkdir(exist_ok=True)
    train, test = shape_name(task, algorithm.train_shape(task.shape)), shape_name(task, task.shape)
    figures: dict[str, Callable[[], Figure | None]] = {
        "learning_curve": lambda: learning_curve(list(directory.rows()), summary, task.metric, train, test),
        "adaptation_curve": lambda: adaptation_curve(summary, task.metric),
        "reliability": lambda: reliability(summary),
        "what_was_learned": lambda: task.picture(algorithm),
    }
    for name, draw in figures.items():
        with style.applied():
            figure = draw()
            if figure is None:
                continue
            style.entitle(figure, *heading(directory, summary))
            path = directory.plots / f"{name}.png"
            style.save(figure, path)
        yield path
    if frames := task.film(algorithm):
        path = directory.plots / "film.gif"
        write_film(frames, path)
        yield path


def heading(directory: RunDirectory, summary: dict[str, Any]) -> tuple[str, str]:
    """Return the run's name, and the entries of its protocol that decide whether two results are comparable."""
    protocol, learners = summary["protocol"], set(summary.get("protocol_of_learner", ())) - {"norm", "test_steps"}
    run = directory.path.resolve()
    shown = {"iterations": summary["iterations"], **{k: v for k, v in protocol.items() if k not in learners}}
    words = [
        f"{key}={f'{value:g}' if isinstance(value, float) else value}"
        for key, value in shown.items()
        if not isinstance(value, dict) and value is not None
    ]
    return f"{run.parent.name}/{run.name}", ", ".join(words)


def shape_name(task: Task, shape: EpisodeShape | None) -> str:
    """Describe the episodes of a split for a legend, such as ``5-way 1-shot``; empty in RL."""
    if shape is None:
        return ""
    if shape.named:
        return "examples of all classes"
    if shape.varied:
        return "varied episodes"
    way = f"{shape.way}-way " if task.spec.kind == "classification" else ""
    return f"{way}{shape.shot}-shot"


def write_film(frames: Sequence[NDArray[np.uint8]], path: Path) -> None:
    """Write a looping GIF of at most 10 seconds; the last frame stays for one second."""
    every = -(-len(frames) // 200)
    first, *others = (Image.fromarray(frame) for frame in [*frames[:-1:every], frames[-1]])
    times = [50 * every if len(frames) > 50 else 200] * len(others) + [1000]
    first.save(path, save_all=True, append_images=others, duration=times, loop=0, optimize=True)


def learning_curve(
    rows: list[dict[str, Any]], summary: dict[str, Any], metric: str, train: str = "", test: str = ""
) -> Figure | None:
    """Plot the metric over iterations: meta-training, validation with 95 % intervals, and the test result.

    Args:
        rows: Rows of metrics.jsonl.
        summary: The run's summary. The test result stands at the iteration of the tested parameters.
        metric: Name of the metric.
        train: Description of the episodes of meta-training, which may have another way and shot.
        test: Description of the episodes of validation and test.
    """
    names = [f"{split}/{metric}" for split in ("train", "val", "test")]
    trained, validated, tested = ([row for row in rows if name in row] for name in names)
    if not trained and not validated:
        return None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.subplots()
    own, others = (f" ({shape})" if shape else "" for shape in (train, test))
    train_name, val_name, test_name = names
    if trained:
        x, y = [row["iteration"] for row in trained], [row[train_name] for row in trained]
        ax.plot(
            x, y, "--", color=style.TRUTH, lw=1, marker="." if len(x) < 20 else "", label=f"meta-training episodes{own}"
        )
    if validated:
        x, y = [row["iteration"] for row in validated], [row[val_name] for row in validated]
        half = [row[f"{val_name}_ci95"] for row in validated]
        label = f"meta-validation{others}, 95 % interval"
        if len(x) == 1:  # a band has no width
            ax.errorbar(x, y, yerr=half, fmt="o", color=style.EARLY, capsize=5, label=label)
        else:
            ax.plot(x, y, "o-", color=style.EARLY, label=label)
            low, high = ([m + sign * h for m, h in zip(y, half, strict=True)] for sign in (-1, 1))
            ax.fill_between(x, low, high, color=style.EARLY, alpha=0.2, lw=0)
    if tested:
        at = summary.get("best_iteration") or tested[-1]["iteration"]
        value, reach = tested[-1][test_name], tested[-1][f"{test_name}_ci95"]
        name = f"meta-test{others}, 95 % interval"
        # Hollow, since the last validation often lies there.
        ax.errorbar(at, value, yerr=reach, fmt="D", color=style.LATE, ms=9, mfc="none", mew=1.5, capsize=3, label=name)
    ax.set(xlabel="outer-loop iteration", ylabel=style.metric_name(metric))
    style.counted(ax.xaxis)
    ax.grid(visible=True)
    style.legend(figure, ax)
    figure.suptitle(f"Learning curve: {metric} while meta-training")
    return figure


def reliability(summary: dict[str, Any]) -> Figure | None:
    """Plot accuracy over confidence on the test tasks, without and with the fitted temperature; areas are shares."""
    rows = summary.get("calibration", {}).get("")
    if not rows:
        return None
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], "--", color=style.TRUTH, lw=1, label="calibrated")
    for row, colour in zip(rows, (style.EARLY, style.LATE), strict=False):
        share, confidence, accuracy = zip(*row["reliability"], strict=True)
        at = "no temperature" if row["temperature"] == 1 else f"temperature {row['temperature']:.3g}"
        label = f"{at}: error {row['ece']['mean']:.3f}"
        ax.plot(confidence, accuracy, color=colour, lw=1)
        sizes = [10 + 400 * each for each in share]
        ax.scatter(confidence, accuracy, s=sizes, color=colour, label=label, alpha=0.7, clip_on=False)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    ax.grid(visible=True)
    style.legend(figure, ax)
    figure.suptitle("Reliability of predicted probabilities on meta-test tasks")
    return figure


def adaptation_curve(summary: dict[str, Any], metric: str) -> Figure | None:
    """Plot the test metric after 0..k adaptation steps with 95 % intervals; ``None`` for learners without steps.

    For RL learners with a hidden state, the curve is over the episodes of a trial.
    """
    points = summary["adaptation"]
    if len(points) < 2:
        return None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.subplots()
    trial = "episode" in points[0]
    steps, means = [p["episode" if trial else "step"] for p in points], [p["mean"] for p in points]
    half = [p["ci95"] for p in points]
    ax.plot(steps, means, "o-", color=style.EARLY, label="meta-test, 95 % interval")
    low, high = ([m + sign * h for m, h in zip(means, half, strict=True)] for sign in (-1, 1))
    ax.fill_between(steps, low, high, color=style.EARLY, alpha=0.2, lw=0)
    references = {} if trial else summary.get("references", {})  # references hold for whole trials
    for number, (name, value) in enumerate(references.items(), 1):
        line = style.LINES[number % len(style.LINES)]
        ax.axhline(value, ls=line, color=style.TRUTH, lw=1.2, label=f"{name}: {value:.4g}")
    ax.set(xlabel="episode of the trial" if trial else "adaptation steps", ylabel=style.metric_name(metric))
    style.counted(ax.xaxis)
    ax.grid(visible=True)
    style.legend(figure, ax)
    figure.suptitle(f"Adaptation curve: {metric} on {points[0]['n']} test tasks")
    return figure
