"""Scores of an adapted learner on queries with known answers, beside two baselines that need no meta-training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarun.adapted.learner import AdaptedLearner
from metarun.adapted.predictions import LeaveOneOut, Predictions
from metarun.adapted.source import Source
from metarun.adapted.tables import classifiers
from metarun.evaluation.statistics import over_episodes, proportion_interval

NEAREST_MEAN = "nearest mean of raw features"


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


@dataclass(frozen=True)
class Coverage:
    """Predictions of which only probable ones are kept, of queries or of support examples by leave-one-out.

    Attributes:
        threshold: Probability below which no class is named.
        total: Number of examples.
        answered: Number of examples for which a class is named.
        right: Number of examples for which the right class is named.
    """

    threshold: float
    total: int
    answered: int
    right: int

    @classmethod
    def of(cls, alone: LeaveOneOut, targets: Sequence[str], threshold: float) -> Coverage:
        """Count the leave-one-out predictions of support examples with these ``targets``."""
        if alone.predictions is None:
            return cls(threshold, 0, 0, 0)
        return cls.of_predictions(alone.predictions, [targets[row] for row in alone.rows], threshold)

    @classmethod
    def of_predictions(cls, predictions: Predictions, targets: Sequence[str], threshold: float) -> Coverage:
        """Count the predictions of examples with these ``targets``."""
        confident, labels = predictions.confident(threshold), predictions.labels
        right = sum(sure and label == target for sure, label, target in zip(confident, labels, targets, strict=True))
        return cls(threshold, len(labels), sum(confident), right)

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as plain values, with coverage, accuracy and its interval; ``None`` without examples."""
        accuracy, interval = None, None
        if self.answered:
            accuracy, interval = self.right / self.answered, list(proportion_interval(self.right, self.answered))
        coverage = self.answered / self.total if self.total else None
        return {"threshold": self.threshold, "coverage": coverage, "accuracy": accuracy, "ci95": interval,
                "answered": self.answered, "examples": self.total}  # fmt: skip

    def __str__(self) -> str:
        start = f"with no class below probability {self.threshold:g}: "
        if not self.total:
            return f"{start}not evaluated, since it needs two examples of a class"
        coverage = f"coverage {self.answered / self.total:.3g} ({self.answered} of {self.total})"
        if not self.answered:
            return f"{start}{coverage}"
        low, high = proportion_interval(self.right, self.answered)
        return f"{start}{coverage}, accuracy {self.right / self.answered:.3g}, 95 % interval [{low:.3g}, {high:.3g}]"


def score(learner: AdaptedLearner, given: Source, asked: Source, predictions: Predictions) -> Score:
    """Score predictions of queries with known answers.

    For classes the baselines are chance and the nearest class mean of raw features: pixels, or words of a text by their
    frequency. For numbers it is the mean of the support set's targets. For tables they are the most frequent class, or
    that mean, and scikit-learn's models.

    Args:
        learner: The adapted learner.
        given: The support set.
        asked: The queries, with targets.
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
    support, queries = raw_features(learner, given.items, asked.items)
    nearest = nearest_mean(support, learner.support.y[0].cpu().numpy(), queries)
    baselines = {"chance": 1 / len(learner.classes), NEAREST_MEAN: float((nearest == known).mean())}
    return Score("accuracy", right / len(known), low, high, len(known), baselines)


def score_alone(learner: AdaptedLearner, given: Source, alone: LeaveOneOut) -> Score | None:
    """Return the leave-one-out accuracy of a classifier with its interval, beside baselines on the same examples.

    Args:
        learner: The adapted learner.
        given: The support set.
        alone: Its leave-one-out evaluation.

    Returns:
        The score; ``None`` in regression, or if no example could be evaluated.
    """
    if alone.score is None or not learner.classes:
        return None
    low, high = proportion_interval(round(alone.score * alone.evaluated), alone.evaluated)
    if learner.inputs.spec.modality == "table":
        frequent = Counter(given.targets).most_common(1)[0][0]
        shown = sum(given.targets[row] == frequent for row in alone.rows) / alone.evaluated
        baselines = {"most frequent class": shown}
    else:
        features, _ = raw_features(learner, given.items, [])
        nearest = nearest_mean_of_others(features, learner.support.y[0].cpu().numpy())[alone.rows]
        baselines = {"chance": 1 / len(learner.classes), NEAREST_MEAN: float(nearest.mean())}
    return Score("accuracy", alone.score, low, high, alone.evaluated, baselines)


def of_leave_one_out(alone: LeaveOneOut, found: Score | None) -> str:
    """Describe the score of support examples, each predicted by a learner that has not seen it; empty if unknown."""
    if alone.score is None:
        return ""
    if found is None:
        return f"leave-one-out mse {alone.score:.4g} on {alone.evaluated} support examples"
    return f"leave-one-out accuracy {found.value:.4g} on {found.n} support examples, {found.beside}"


def raw_features(
    learner: AdaptedLearner, items: Sequence[Any], others: Sequence[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return features of two lists of inputs that need no learning: pixels, word frequencies, or the numbers."""
    if learner.inputs.spec.modality == "text":
        return word_frequencies(items, others)
    raw = [learner.inputs.raw(part, None).numpy() for part in (items, others) if len(part)]
    flat = [part.reshape(len(part), -1) for part in raw]
    return flat[0], flat[1] if len(flat) > 1 else flat[0][:0]


def nearest_mean_of_others(features: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return for each example whether its class mean, taken without it, is the nearest of all class means.

    It is false for the only example of a class.

    Args:
        features: Features of the examples [N, features].
        labels: Class of each example, 0..C-1.
    """
    counts, rows = np.bincount(labels), np.arange(len(labels))
    means = np.stack([features[labels == label].mean(0, dtype=np.float64) for label in range(len(counts))])
    parts = [part.astype(np.float64) for part in np.array_split(features, -(-len(features) // 256))]
    apart = np.concatenate([np.square(part).sum(1)[:, None] - 2 * part @ means.T for part in parts])
    apart += np.square(means).sum(1)
    own = counts[labels]
    with np.errstate(divide="ignore", invalid="ignore"):  # without itself, its class mean is n / (n - 1) times as far
        apart[rows, labels] *= np.square(own / (own - 1))
    return (own > 1) & (apart.argmin(1) == labels)


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
        found = np.array([[text[word] for word in words] for text in texts], np.float64).reshape(-1, len(words))
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)

    return vectors(counts[0]), vectors(counts[1])
