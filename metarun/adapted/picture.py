"""One picture of what a learner was adapted to and what it predicts."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from metarun.adapted.learner import AdaptedLearner, Predictions
from metarun.adapted.sources import Source
from metarun.tasks.base import Spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 40
"""Queries drawn at most."""


def sheet(
    spec: Spec, given: Source, asked: Source | None, learner: AdaptedLearner, predictions: Predictions | None
) -> Figure:
    """Support and queries with their predictions: images as tiles, texts as lines, numbers as a plot."""
    if spec.modality == "image":
        return _images(given, asked, learner, predictions)
    if spec.modality == "text":
        return _texts(given, asked, learner, predictions)
    return _numbers(spec, given, asked, learner, predictions)


def _images(given: Source, asked: Source | None, learner: AdaptedLearner, predictions: Predictions | None) -> Figure:
    from matplotlib.figure import Figure

    by_class = {name: [i for i, t in enumerate(given.targets) if t == name][:5] for name in learner.classes[:20]}
    queries = min(len(asked.items), SHOWN) if asked else 0
    columns, wide = 5, 8 if queries else 0
    rows = max(len(by_class), -(-queries // max(wide, 1)))
    figure = Figure(figsize=(1.15 * (columns + wide) + 1.2, 1.25 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns + wide, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    support = learner.support.x[0].cpu().numpy()
    for row, (name, members) in enumerate(by_class.items()):
        for column, i in enumerate(members):
            _tile(axes[row, column], support[i])
        axes[row, 0].set_title(f"{name[-22:]}", fontsize=8, loc="left", weight="bold")
    if asked and predictions:
        images = learner.inputs.tensor(asked.items[:queries], learner.algorithm.model).numpy()
        for i in range(queries):
            ax = axes[i // wide, columns + i % wide]
            _tile(ax, images[i])
            label, sure = predictions.labels[i], float(predictions.probabilities[i].max())
            colour = "0.2" if not asked.targets else "tab:green" if asked.targets[i] == label else "tab:red"
            ax.set_title(f"{label[-14:]} {100 * sure:.0f} %", fontsize=7, color=colour)
    figure.suptitle("left: support" + (", right: queries with the class predicted" if queries else ""), fontsize=9)
    return figure


def _tile(ax: Axes, image: np.ndarray) -> None:
    shown = image.transpose(1, 2, 0)
    ax.imshow(shown.squeeze(-1) if shown.shape[2] == 1 else shown, cmap="gray", vmin=0, vmax=255)


def _texts(given: Source, asked: Source | None, learner: AdaptedLearner, predictions: Predictions | None) -> Figure:
    from matplotlib.figure import Figure

    lines = []
    for name in learner.classes:
        texts = [t for t, target in zip(given.items, given.targets, strict=True) if target == name]
        lines += [(f"{name}", text, "", "0.4") for text in texts[:2]]
    if asked and predictions:
        for i, text in enumerate(asked.items[:SHOWN]):
            label, sure = predictions.labels[i], float(predictions.probabilities[i].max())
            colour = "k" if not asked.targets else "tab:green" if asked.targets[i] == label else "tab:red"
            lines.append(("?", text, f"{label}  {100 * sure:.0f} %", colour))
    figure = Figure(figsize=(11, 0.27 * len(lines) + 0.6))
    ax = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    ax.set(xlim=(0, 1), ylim=(len(lines), -1))
    ax.axis("off")
    for y, (name, text, guess, colour) in enumerate(lines):
        for x, cell, width in ((0.0, name, 28), (0.22, text, 80), (0.78, guess, 30)):
            short = textwrap.shorten(cell, width, placeholder=" ...")
            ax.text(x, y, short, fontsize=8, color=colour if x else "k", va="center", parse_math=False)
    return figure


def _numbers(
    spec: Spec, given: Source, asked: Source | None, learner: AdaptedLearner, predictions: Predictions | None
) -> Figure:
    """One input: curves over it. More: the predicted against the known, of the support set and of known queries."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.subplots()
    x, y = np.array(given.items), np.array(given.targets)
    if spec.input_shape == (1,):
        everywhere = np.concatenate([x, np.array(asked.items)]) if asked else x
        grid = np.linspace(everywhere.min(), everywhere.max(), 200)[:, None]
        ax.plot(grid[:, 0], learner.predict(grid.tolist()).values.numpy(), color="tab:blue", label="adapted learner")
        ax.plot(x[:, 0], y, "o", color="k", ms=5, label="support")
        if asked and predictions:
            ax.plot(
                np.array(asked.items)[:, 0], predictions.values.numpy(), "x", color="tab:red", label="query, predicted"
            )
            if asked.targets:
                ax.plot(np.array(asked.items)[:, 0], np.array(asked.targets), ".", color="0.6", label="query, known")
        ax.set(xlabel="x", ylabel="y")
    else:
        ax.plot(y, learner.predict(given.items).values.numpy(), "o", color="k", ms=4, label="support")
        if asked and asked.targets and predictions:
            ax.plot(np.array(asked.targets), predictions.values.numpy(), "x", color="tab:red", label="query")
        ax.axline((0, 0), slope=1, color="0.7", lw=1)
        ax.set(xlabel="known", ylabel="predicted")
    ax.grid(alpha=0.3)
    ax.legend()
    return figure
