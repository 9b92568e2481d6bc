"""One figure of the support set that a learner was adapted to and of its predictions."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from metarun.adapted.learner import AdaptedLearner, Predictions
from metarun.adapted.sources import Source
from metarun.escape import printable
from metarun.tasks.episode import Spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASSES, SUPPORT, QUERIES = 20, 5, 8
"""Largest numbers of rows, and of support images and queries in each."""


def sheet(
    spec: Spec, given: Source, asked: Source | None, learner: AdaptedLearner, predictions: Predictions | None
) -> Figure:
    """Plot support set and queries with their predictions: images as tiles, texts as lines, numbers as a graph."""
    if spec.modality == "image":
        return _images(given, asked, learner, predictions)
    if spec.modality == "text":
        return _texts(given, asked, learner, predictions)
    return _numbers(spec, given, asked, learner, predictions)


def queries_by_class(
    classes: Sequence[str], asked: Source, predictions: Predictions, most: int
) -> dict[str, list[int]]:
    """Return the queries displayed with each class: those of the true class if known, else of the predicted one.

    At most ``most`` are chosen for each class, evenly spread.
    """
    homes = asked.targets or predictions.labels
    members = {name: [i for i, home in enumerate(homes) if home == name] for name in classes}
    return {name: [each[i] for i in spread(len(each), most)] for name, each in members.items()}


def spread(count: int, most: int) -> list[int]:
    """Return ``most`` of the numbers 0..count-1, evenly spread with the first and the last, or all if there are
    fewer.
    """
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))}) if count else []


def _headline(classes: int, asked: Source | None, predictions: Predictions | None, shown: int, rows: int) -> str:
    """Describe how much is displayed, and how much of everything is right."""
    words = [f"{rows} of {classes} classes"] if rows < classes else []
    if asked and predictions:
        how = "true" if asked.targets else "predicted"
        words.append(f"{shown} of {len(asked.items)} queries shown, in the row of their {how} class")
        if asked.targets:
            right = sum(a == b for a, b in zip(asked.targets, predictions.labels, strict=True))
            words.append(f"{right} of {len(asked.items)} are predicted correctly")
    return "; ".join(words)


def _images(given: Source, asked: Source | None, learner: AdaptedLearner, predictions: Predictions | None) -> Figure:
    from matplotlib.figure import Figure

    classes = [learner.classes[i] for i in spread(len(learner.classes), CLASSES)]
    by_class = queries_by_class(classes, asked, predictions, QUERIES) if asked and predictions else {}
    wide = max(map(len, by_class.values()), default=0)
    figure = Figure(figsize=(1.15 * (SUPPORT + wide) + 1.2, 1.25 * len(classes) + 0.6), layout="constrained")
    axes = figure.subplots(len(classes), SUPPORT + wide, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    support = learner.support.x[0].cpu().numpy()
    homes = asked and predictions and Counter(asked.targets or predictions.labels)
    for row, name in enumerate(classes):
        members = [i for i, target in enumerate(given.targets) if target == name]
        for column, i in enumerate(members[i] for i in spread(len(members), SUPPORT)):
            _tile(axes[row, column], support[i])
        axes[row, 0].set_title(name[-22:], fontsize=8, loc="left", weight="bold", parse_math=False)
        chosen = by_class.get(name, [])
        if not (asked and predictions and homes and chosen):
            continue
        images = learner.inputs.tensor([asked.items[i] for i in chosen], learner.algorithm.model).numpy()
        for column, (i, image) in enumerate(zip(chosen, images, strict=True), start=SUPPORT):
            _tile(axes[row, column], image)
            label, sure = predictions.labels[i], float(predictions.probabilities[i].max())
            colour = "0.2" if not asked.targets else "tab:green" if label == name else "tab:red"
            text = f"{label[-14:]} {100 * sure:.0f} %"
            axes[row, column].set_title(text, fontsize=7, color=colour, parse_math=False)
        if len(chosen) < homes[name]:
            at = {"transform": axes[row, SUPPORT].transAxes, "fontsize": 6, "va": "top", "color": "0.4"}
            axes[row, SUPPORT].text(0, -0.03, f"{len(chosen)} of {homes[name]}", **at)
    shown = sum(map(len, by_class.values()))
    headline = _headline(len(learner.classes), asked, predictions, shown, len(classes))
    sides = "left: support; right: queries" if shown else "support"
    figure.suptitle("; ".join(filter(None, [sides, headline])), fontsize=9)
    return figure


def _tile(ax: Axes, image: NDArray[np.uint8]) -> None:
    pixels = image.transpose(1, 2, 0)
    ax.imshow(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255)


def _texts(given: Source, asked: Source | None, learner: AdaptedLearner, predictions: Predictions | None) -> Figure:
    from matplotlib.figure import Figure

    classes = [learner.classes[i] for i in spread(len(learner.classes), CLASSES)]
    by_class = queries_by_class(classes, asked, predictions, QUERIES) if asked and predictions else {}
    lines = []
    for name in classes:
        texts = [t for t, target in zip(given.items, given.targets, strict=True) if target == name]
        lines += [(name, texts[i], "(support)", "0.4") for i in spread(len(texts), 2)]
        if asked is None or predictions is None:
            continue
        for i in by_class[name]:
            label, sure = predictions.labels[i], float(predictions.probabilities[i].max())
            colour = "k" if not asked.targets else "tab:green" if label == name else "tab:red"
            lines.append((name if asked.targets else "?", asked.items[i], f"{label}  {100 * sure:.0f} %", colour))
    figure = Figure(figsize=(11, 0.27 * len(lines) + 0.9))
    ax = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    ax.set(xlim=(0, 1), ylim=(len(lines), -2))
    ax.axis("off")
    shown = sum(map(len, by_class.values()))
    headline = _headline(len(learner.classes), asked, predictions, shown, len(classes))
    ax.text(0, -1.3, headline, fontsize=9, va="center", parse_math=False)
    for y, (name, text, guess, colour) in enumerate(lines):
        if guess == "(support)":
            ax.axhspan(y - 0.5, y + 0.5, color="0.93", lw=0)
        for x, cell, width in ((0.0, name, 28), (0.22, text, 80), (0.78, guess, 30)):
            short = textwrap.shorten(printable(cell), width, placeholder=" ...")
            ax.text(x, y, short, fontsize=8, color=colour if x else "k", va="center", parse_math=False)
    return figure


def _numbers(
    spec: Spec, given: Source, asked: Source | None, learner: AdaptedLearner, predictions: Predictions | None
) -> Figure:
    """Plot curves over a single input; for several inputs, plot predicted against known values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.subplots()
    x, y = np.array(given.items), np.array(given.targets)
    if spec.input_shape == (1,):
        everywhere = np.concatenate([x, np.array(asked.items)]) if asked else x
        grid = np.linspace(everywhere.min(), everywhere.max(), 200)[:, None]
        ax.plot(grid[:, 0], learner.predict(grid).values.numpy(), color="tab:blue", label="adapted learner")
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
