"""Scores of an adapted learner on queries with known answers, beside two baselines that need no meta-training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarun.adapted.learner import AdaptedLearner, LeaveOneOut, Predictions
from metarun.adapted.sources import Source
from metarun.adapted.tables import classifiers
from metarun.evaluation.statistics import over_episodes, proportion_interval


@dataclass(frozen=True)
class Score:
    """A score on n queries.

    Attributes:
        name: ``accuracy`` or ``mse``.
        value: Mean over the queries.
        low: Lower end of its 95 % interval: Wilson's for an accuracy, else 1.96 standard errors.
        high: Upper end of the interval.
        n: Number of queries.
        baselines: Score of each baseline on the same queries, by name.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    baselines: dict[str, float]

    @property
    def beside(self) -> str:
        """The interval and the baselines in words."""
        interval = f"95 % interval [{self.low:.3g}, {self.high:.3g}]"
        return "; ".join([interval, *(f"{name} {value:.3g}" for name, value in self.baselines.items())])

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} on {self.n} queries, {self.beside}"


def score(learner: AdaptedLearner, given: Source, asked: Source, x: Any, predictions: Predictions) -> Score:
    """Score predictions of queries with known answers.

    For classes the baselines are chance and the nearest class mean of raw features: pixels, or words of a text by their
    frequency. For numbers it is the mean of the support set's targets. For tables they are the most frequent class, or
    that mean, and scikit-learn's models.

    Args:
        learner: The adapted learner.
        given: The support set.
        asked: The queries, with targets.
        x: The queries as tensors.
        predictions: Predictions for them.
    """
    if not learner.classes:
        targets, known = np.array(given.targets, dtype=np.float64), np.array(asked.targets, dtype=np.float64)
        errors = np.square(predictions.values.double().numpy() - known).mean(1)
        mean = over_episodes([errors])
        constant = float(np.square(known - targets.mean(0)).mean())
        baselines = {"mean of the support set": constant, **classifiers(given, asked)}
        return Score("mse", mean.mean, mean.low, mean.high, mean.n, baselines)
    known = np.array([learner.classes.index(target) for target in asked.targets])
    right = sum(a == b for a, b in zip(asked.targets, predictions.labels, strict=True))
    low, high = proportion_interval(right, len(known))
    if learner.inputs.spec.modality == "table":
        frequent = Counter(given.targets).most_common(1)[0][0]
        baselines = {"most frequent class": asked.targets.count(frequent) / len(known), **classifiers(given, asked)}
        return Score("accuracy", right / len(known), low, high, len(known), baselines)
    if learner.inputs.spec.modality == "text":
        support, queries = word_frequencies(given.items, asked.items)
    else:
        support, queries = (np.asarray(part.cpu()).reshape(len(part), -1) for part in (learner.support.x[0], x))
    nearest = nearest_mean(support, learner.support.y[0].cpu().numpy(), queries)
    baselines = {"chance": 1 / len(learner.classes), "nearest mean of raw features": float((nearest == known).mean())}
    return Score("accuracy", right / len(known), low, high, len(known), baselines)


def of_leave_one_out(learner: AdaptedLearner, alone: LeaveOneOut) -> str:
    """Describe the score of support examples, each predicted by a learner that has not seen it; empty if unknown."""
    if alone.score is None:
        return ""
    if not learner.classes:
        return f"leave-one-out mse {alone.score:.4g} on {alone.evaluated} support examples"
    low, high = proportion_interval(round(alone.score * alone.evaluated), alone.evaluated)
    return (
        f"leave-one-out accuracy {alone.score:.4g}, 95 % interval [{low:.3g}, {high:.3g}], on {alone.evaluated} "
        f"support examples; chance {1 / len(learner.classes):.3g}"
    )


def nearest_mean(support: NDArray[Any], labels: NDArray[Any], queries: NDArray[Any]) -> NDArray[np.int64]:
    """Return for each query [M, features] the class whose mean over the support set [N, features] is nearest.

    Args:
        support: Features of the support set.
        labels: Class of each support example, 0..C-1.
        queries: Features of the queries.
    """
    means = np.stack([support[labels == label].mean(0, dtype=np.float64) for label in range(labels.max() + 1)])
    parts = np.array_split(queries, -(-len(queries) // 256))  # bounds the memory that float64 takes
    return np.concatenate(
        [(np.square(means).sum(1) - 2 * part.astype(np.float64) @ means.T).argmin(1) for part in parts]
    )


def word_frequencies(support: Sequence[str], queries: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return vectors of unit length that count the words of texts; words outside the support set are left out."""
    counts = [[Counter(re.findall(r"\w+", text.lower())) for text in texts] for texts in (support, queries)]
    words = sorted(set().union(*counts[0]))

    def vectors(texts: Sequence[Counter[str]]) -> NDArray[Any]:
        found = np.array([[text[word] for word in words] for text in texts], dtype=np.float64)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)

    return vectors(counts[0]), vectors(counts[1])
