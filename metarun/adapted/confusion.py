"""Confusion matrices of an adapted learner: predicted against true classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from metarun import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 30
"""Largest number of classes of a picture; of more, those with the most errors are drawn."""
NUMBERED = 15
"""Largest number of classes at which cells have their counts."""


def confusion(classes: Sequence[str], targets: Sequence[str], labels: Sequence[str]) -> NDArray[np.int64]:
    """Return how often each class [C] was predicted as each [C]: rows are the true classes."""
    place = {name: i for i, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), np.int64)
    for target, label in zip(targets, labels, strict=True):
        counts[place[target], place[label]] += 1
    return counts


def confusion_figure(classes: Sequence[str], panels: Sequence[tuple[str, NDArray[np.int64]]]) -> Figure:
    """Plot confusion matrices side by side, cells shaded by their share of the row.

    Args:
        classes: Names of the classes.
        panels: Title and counts [C, C] of each.
    """
    from matplotlib.figure import Figure

    errors = sum(counts.sum(1) + counts.sum(0) - 2 * counts.diagonal() for _, counts in panels)
    shown = np.sort(np.argsort(-np.asarray(errors), kind="stable")[:MOST])
    names = [style.label(classes[i], 1.6) for i in shown]
    size = 2.2 + 0.28 * len(shown)
    figure = Figure(figsize=(size * len(panels) + 0.4, size), layout="constrained")
    for ax, (title, counts) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        part = counts[np.ix_(shown, shown)]
        share = part / np.maximum(counts[shown].sum(1, keepdims=True), 1)
        ax.imshow(share, cmap="Greys", vmin=0, vmax=1.4)
        if len(shown) <= NUMBERED:
            for row, column in zip(*np.nonzero(part), strict=True):
                right = row == column
                text, colour = f"{part[row, column]}", style.GIVEN if right else style.WRONG
                ax.text(column, row, text, ha="center", va="center", fontsize=style.SMALL,
                        color="white" if share[row, column] > 0.7 and right else colour)  # fmt: skip
        ax.set_xticks(range(len(names)), names, rotation=90)
        ax.set_yticks(range(len(names)), names)
        ax.tick_params(labelsize=style.SMALL)
        some = "" if len(shown) == len(classes) else f"; the {len(shown)} of {len(classes)} classes with most errors"
        ax.set_title(f"{title}{some}", fontsize=style.SMALL)
        ax.set(xlabel="predicted class", ylabel="true class")
    return figure
