"""Predictions of an adapted learner, and its leave-one-out evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from metarun.algorithms.metric.transductive import Inductive


@dataclass(frozen=True)
class Predictions:
    """Predictions for N inputs.

    Attributes:
        labels: Most probable class of each input; empty in regression.
        probabilities: [N, classes] in the order of the learner's classes; empty in regression.
        values: [N, outputs] in regression; empty otherwise.
    """

    labels: list[str]
    probabilities: Tensor
    values: Tensor

    def confident(self, least: float) -> list[bool]:
        """Find the inputs whose class is certain enough.

        Args:
            least: Smallest probability.

        Returns:
            For each input whether the probability of its predicted class is at least ``least``.
        """
        return (self.probabilities.amax(1) >= least).tolist()


def depend_on_each_other(algorithm: Any) -> bool:
    """Return whether an algorithm's predictions depend on which queries are predicted together: those of transductive
    normalisation and of transductive heads.
    """
    refine = getattr(getattr(algorithm, "head", None), "refine", None)
    is_refined = refine is not None and not isinstance(refine, Inductive)
    return is_refined or getattr(algorithm, "norm", "running") == "transductive"


@dataclass(frozen=True)
class LeaveOneOut:
    """Leave-one-out evaluation: each support example is predicted by the learner adapted to all others.

    Attributes:
        score: Accuracy, or mean squared error; ``None`` if no example could be evaluated.
        evaluated: Number of evaluated examples.
        left_out: Number of examples that are the only one of their class and therefore not evaluated.
        diverged: Number of examples whose prediction was not finite; they are not evaluated.
        rows: Index of each evaluated example in the support set.
        predictions: Their predictions; ``None`` without any.
    """

    score: float | None
    evaluated: int
    left_out: int
    diverged: int = 0
    rows: list[int] = field(default_factory=list)
    predictions: Predictions | None = None
