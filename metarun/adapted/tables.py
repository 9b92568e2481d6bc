"""Learners of tables: the importance of columns, and scikit-learn's classifiers on the same rows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun import style
from metarun.adapted.learner import AdaptedLearner
from metarun.adapted.source import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPEATS = 10
FOLDS = 5


def importance(learner: AdaptedLearner, given: Source, asked: Source | None) -> tuple[NDArray[np.float64], str]:
    """Return the loss of score when a column is shuffled among the rows to predict (permutation importance).

    The rows are the queries if their answers are known. Otherwise each fifth of the support rows is predicted from the
    others.

    Args:
        learner: The adapted learner.
        given: The support rows.
        asked: The queries, if there are any.

    Returns:
        Loss of accuracy, or increase of the mean squared error, [columns, repeats]; and the name of that score with the
        rows.
    """
    x, targets = learner.support.x[0].cpu(), np.array(given.targets)
    parts: list[tuple[Callable[[Tensor], Any], Tensor, NDArray[Any]]] = []
    if asked is not None and asked.targets:
        rows = learner.inputs.tensor(asked.items, None)
        parts.append((learner.predict_prepared, rows, np.array(asked.targets)))
        where = f"{len(rows)} queries"
    else:
        for fold in range(min(FOLDS, len(targets))):
            out = np.arange(len(targets)) % FOLDS == fold
            rest = [given.targets[i] for i in np.flatnonzero(~out)]
            if learner.classes and len(set(rest)) < 2:
                continue
            other = AdaptedLearner.adapt(learner.algorithm, learner.inputs, [*x[~out].numpy()], rest, seed=learner.seed)
            parts.append((other.predict_prepared, x[out], targets[out]))
        where = f"{len(targets)} support rows, each fifth predicted from the others"
    random = np.random.default_rng(0)

    def score(column: int | None) -> float:
        total, count = 0.0, 0
        for predict, rows, known in parts:
            changed = rows.clone()
            if column is not None:
                changed[:, column] = rows[torch.from_numpy(random.permutation(len(rows))), column]
            found = predict(changed)
            if learner.classes:
                total += float((np.array(found.labels) == known).sum())
            else:
                total -= float(np.square(found.values.double().numpy() - known.astype(np.float64)).sum())
            count += len(known)
        return total / max(count, 1)

    whole = score(None)
    lost = [[whole - score(column) for _ in range(REPEATS)] for column in range(x.shape[1])]
    return np.array(lost), f"{'accuracy lost' if learner.classes else 'mse gained'} on {where}"


def importance_figure(names: Sequence[str], lost: NDArray[np.float64], score: str) -> Figure:
    """Plot the importance of columns as bars, the most important on top; whiskers are standard deviations."""
    from matplotlib.figure import Figure

    order = lost.mean(1).argsort()[-20:]
    figure = Figure(figsize=(7, 1.2 + 0.3 * len(order)), layout="constrained")
    ax = figure.subplots()
    ax.barh([style.label(names[i]) for i in order], lost[order].mean(1), xerr=lost[order].std(1), color=style.LATE)
    ax.set(xlabel=f"{score}\nwhen the column is shuffled")
    ax.grid(visible=True, axis="x")
    return figure


def classifiers(given: Source, asked: Source) -> dict[str, float]:
    """Return the scores of scikit-learn's models on the queries, by name; empty without scikit-learn.

    The models are fitted to the support rows with scikit-learn's defaults. Gaps of numbers take the median, categories
    are one-hot.
    """
    if importlib.util.find_spec("sklearn") is None or given.encoding is None:
        return {}
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import (
        GradientBoostingClassifier,
        GradientBoostingRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
    )
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    words = [i for i, column in enumerate(given.encoding.columns) if column.type == "categories"]
    numbers = [i for i in range(len(given.encoding.columns)) if i not in words]
    prepare = make_column_transformer(
        (make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()), numbers),
        (OneHotEncoder(handle_unknown="ignore"), words),
    )
    classes = isinstance(given.targets[0], str)
    models: dict[str, Any] = (
        {
            "logistic regression": LogisticRegression(max_iter=1000),
            "random forest": RandomForestClassifier(random_state=0),
            "gradient boosting": GradientBoostingClassifier(random_state=0),
        }
        if classes
        else {
            "ridge regression": Ridge(),
            "random forest": RandomForestRegressor(random_state=0),
            "gradient boosting": GradientBoostingRegressor(random_state=0),
        }
    )
    x, queries = np.array(given.items), np.array(asked.items)
    y, known = (np.array(part) if classes else np.array(part)[:, 0] for part in (given.targets, asked.targets))
    found = {}
    for name, model in models.items():
        predicted = make_pipeline(prepare, model).fit(x, y).predict(queries)
        found[name] = float((predicted == known).mean() if classes else np.square(predicted - known).mean())
    return found
