"""One figure of the support set that a learner was adapted to and of its predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from metarun import style
from metarun.adapted.learner import AdaptedLearner
from metarun.adapted.predictions import Predictions
from metarun.adapted.source import Source
from metarun.adapted.tables import importance, importance_figure
from metarun.tasks.episode import Spec
from metarun.tasks.sheets import Query, Row, image_sheet, text_sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSES, SUPPORT, TEXTS, QUERIES = 20, 5, 2, 8
"""Largest numbers of rows, and of support images, support texts and queries in each."""


def sheet(
    spec: Spec, given: Source, asked: Source | None, learner: AdaptedLearner, predictions: Predictions | None
) -> Figure:
    """Plot support set and queries with their predictions: images as tiles, texts as lines, numbers as a graph.

    Of a table, plot the importance of its columns.
    """
    if spec.modality == "table":
        assert given.columns is not None
        return importance_figure(given.columns[0], *importance(learner, given, asked))
    if spec.kind == "regression":
        return _numbers(spec, given, asked, learner, predictions)
    rows, remark = _rows(spec, given, asked, learner, predictions)
    images = spec.modality == "image"
    figure = image_sheet(rows, "queries, with the predicted class", cell=1.1) if images else text_sheet(rows)
    figure.suptitle(remark)
    return figure


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


def _rows(
    spec: Spec, given: Source, asked: Source | None, learner: AdaptedLearner, predictions: Predictions | None
) -> tuple[list[Row], str]:
    """Return a row for each class, and what the sheet shows of everything."""
    classes = [learner.classes[i] for i in spread(len(learner.classes), CLASSES)]
    shown = queries_by_class(classes, asked, predictions, QUERIES) if asked and predictions else {}
    homes = Counter(asked.targets or predictions.labels) if asked and predictions else Counter()
    images, least = spec.modality == "image", learner.abstain or 0.0
    support: Any = _pixels(learner.inputs.raw(given.items, None)) if images else given.items
    rows = []
    for name in classes:
        members = [i for i, target in enumerate(given.targets) if target == name]
        chosen, queries = shown.get(name, []), []
        if asked and predictions and chosen:
            items: Any = [asked.items[i] for i in chosen]
            if images:
                items = _pixels(learner.inputs.raw(items, None))
            for i, item in zip(chosen, items, strict=True):
                text, chance = predictions.labels[i], float(predictions.probabilities[i].max())
                right = asked.targets[i] == text if asked.targets else None
                if chance < least:
                    text, right = f"no class ({text})", None
                queries.append(Query(item, text, right, chance))
        few = f"{len(chosen)} of {homes[name]} queries" if len(chosen) < homes[name] else ""
        drawn = [members[i] for i in spread(len(members), SUPPORT if images else TEXTS)]
        rows.append(Row(name, [support[i] for i in drawn], queries, few))
    parts = [f"{len(classes)} of {len(learner.classes)} classes"] if len(classes) < len(learner.classes) else []
    parts.append(f"{sum(len(row.support) for row in rows)} of {len(given.items)} support examples")
    if asked:
        home = "true" if asked.targets else "predicted"
        count = f"{sum(len(row.queries) for row in rows)} of {len(asked.items)} queries"
        parts.append(f"{count}, each in the row of its {home} class")
    signs = "; ✓ right, ✗ wrong" if asked and asked.targets else ""
    signs += f"; no class below probability {least:g}" if asked and least else ""
    return rows, f"{', '.join(parts)}{signs}"


def _pixels(images: Any) -> Any:
    """Return images [N, channels, height, width] uint8 as [N, height, width, 1 or 3] in 0..1."""
    values = images.cpu().numpy().transpose(0, 2, 3, 1) / 255
    return values if values.shape[3] in (1, 3) else values.mean(3, keepdims=True)


def _numbers(
    spec: Spec, given: Source, asked: Source | None, learner: AdaptedLearner, predictions: Predictions | None
) -> Figure:
    """Plot curves over a single input; for several inputs, plot predicted against known values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    ax = figure.subplots()
    x, y = np.array(given.items), np.array(given.targets)
    inputs, targets = given.columns or ([f"input {i + 1}" for i in range(x.shape[1])], ["target"] * y.shape[1])
    if spec.input_shape == (1,):
        everywhere = np.concatenate([x, np.array(asked.items)]) if asked else x
        grid = np.linspace(everywhere.min(), everywhere.max(), 200)[:, None]
        ax.plot(grid[:, 0], learner.predict(grid).values.numpy(), color=style.EARLY, label="adapted learner")
        ax.plot(x[:, 0], y, "^", color=style.GIVEN, ms=6, label="support set")
        if asked and predictions:
            at = np.array(asked.items)[:, 0]
            ax.plot(at, predictions.values.numpy(), "x", color=style.LATE, ms=6, label="query, predicted")
            if asked.targets:
                ax.plot(at, np.array(asked.targets), "o", color=style.TRUTH, label="query, known")
        ax.set(xlabel=style.label(inputs[0]), ylabel=style.label(", ".join(targets)))
    else:
        ax.plot(y, learner.predict(given.items).values.numpy(), "^", color=style.GIVEN, label="support set")
        if asked and asked.targets and predictions:
            known = np.array(asked.targets)
            ax.plot(known, predictions.values.numpy(), "x", color=style.LATE, ms=6, label="query")
        ax.axline((0, 0), slope=1, color=style.TRUTH, lw=1, label="predicted = known")
        name = style.label(", ".join(targets))
        ax.set(xlabel=f"{name}, known", ylabel=f"{name}, predicted")
    ax.grid(visible=True)
    style.legend(figure, ax)
    return figure
