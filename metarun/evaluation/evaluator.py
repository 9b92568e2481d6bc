"""Evaluation of a learner on held-out tasks: means over episodes with 95 % confidence intervals."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import nan, sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.algorithms.base import Algorithm
from metarun.algorithms.supervised import OnPredictions, SupervisedAlgorithm
from metarun.errors import Interrupted
from metarun.evaluation.calibration import Calibration
from metarun.evaluation.statistics import interquartile_mean, percentiles, standard_error, stratified_bootstrap
from metarun.progress import Progress
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape
from metarun.tasks.rng import derived_seed, seed_generators
from metarun.types import Split

log = logging.getLogger("metarun")


@dataclass(frozen=True)
class Estimate:
    """Mean of a metric over tasks with a normal 95 % confidence interval.

    Attributes:
        mean: Mean over the tasks.
        ci95: Half the width of the interval, 1.96 standard errors. NaN for a single task.
        n: Number of tasks.
        together: Number of consecutive tasks that depend on each other, and count as one in the interval.
    """

    mean: float
    ci95: float
    n: int
    together: int = 1

    @classmethod
    def of(cls, values: Tensor, together: int = 1) -> Estimate:
        """Estimate the mean from one value per task, [n]."""
        values = values.double()
        if together > 1:
            half = 1.96 * standard_error(values.numpy(), together)
        else:
            half = 1.96 * float(values.std()) / sqrt(len(values)) if len(values) > 1 else nan
        return cls(float(values.mean()), half, len(values), together)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON; ``together`` only if it is more than 1."""
        plain = {"mean": self.mean, "ci95": self.ci95, "n": self.n}
        return plain if self.together == 1 else {**plain, "together": self.together}


@dataclass(frozen=True)
class RobustEstimate:
    """Interquartile mean (IQM) over tasks with a bootstrap 95 % interval (Agarwal et al. 2021, arXiv:2108.13264).

    The IQM is the mean without the lowest n // 4 and the highest n // 4 tasks. It describes typical tasks better than
    the mean where returns are skewed.

    Attributes:
        iqm: Interquartile mean.
        low: Lower end of the interval, the 2.5th percentile of the bootstrap samples, whose seed is fixed.
        high: Upper end of the interval, the 97.5th percentile.
        n: Number of tasks.
    """

    iqm: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Tensor) -> RobustEstimate:
        """Estimate the IQM from one value per task, [n]."""
        scores = values.double().numpy()
        low, high = percentiles(interquartile_mean(stratified_bootstrap([scores])))
        return cls(float(interquartile_mean(scores)), float(low), float(high), len(scores))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {"iqm": self.iqm, "low": self.low, "high": self.high, "n": self.n}


@dataclass(frozen=True)
class Result:
    """Metrics of an evaluation, task by task.

    Attributes:
        curves: Values of each metric, [n, k + 1], for n tasks after 0..k adaptation steps. The last column is the
            final result. Learners that do not adapt in steps have one column.
        together: Number of consecutive tasks that depend on each other.
        calibration: In classification, sums of the probabilities of each task (:mod:`metarun.evaluation.calibration`)
            by temperature, [n, COLUMNS].
    """

    curves: dict[str, Tensor]
    together: int = 1
    calibration: Mapping[float, NDArray[np.float64]] = field(default_factory=dict)

    def final(self) -> dict[str, Estimate]:
        """Return the mean of each metric after the last adaptation step."""
        return {name: self._mean(curve[:, -1]) for name, curve in self.curves.items()}

    def adaptation(self, metric: str) -> list[dict[str, Any]]:
        """Return the mean of ``metric`` after each adaptation step.

        Returns:
            One entry per adaptation ``step``, from 0. A recurrent RL agent adapts from episode to episode of a trial,
            so its entries are per ``episode``, from 1.
        """
        if "episode_return" in self.curves:
            columns = self.curves["episode_return"].unbind(1)
            return [{"episode": number, **self._mean(column).as_dict()} for number, column in enumerate(columns, 1)]
        columns = self.curves[metric].unbind(1)
        return [{"step": step, **self._mean(column).as_dict()} for step, column in enumerate(columns)]

    def _mean(self, column: Tensor) -> Estimate:
        return Estimate.of(column, self.together)


def final(results: Mapping[str, Result]) -> dict[str, Estimate]:
    """Merge the final results of several episode shapes, adding the suffix of the shape to the names of its metrics."""
    return {name + suffix: estimate for suffix, result in results.items() for name, estimate in result.final().items()}


def robust(task: Task, results: Mapping[str, Result]) -> dict[str, Any]:
    """Return ``{"robust": ...}`` with interquartile means of the task's metric for RL tasks, and ``{}`` for others."""
    if task.kind != "control":
        return {}
    return {
        "robust": {
            task.metric + suffix: RobustEstimate.of(result.curves[task.metric][:, -1]).as_dict()
            for suffix, result in results.items()
        }
    }


def test_row(iteration: int, results: Mapping[str, Result]) -> dict[str, Any]:
    """The last row of metrics.jsonl: every test metric with its interval."""
    row: dict[str, Any] = {"iteration": iteration}
    for name, estimate in final(results).items():
        row |= {f"test/{name}": estimate.mean, f"test/{name}_ci95": estimate.ci95}
    return row


def warn_of_divergence(results: Mapping[str, Result]) -> None:
    """Log how many test tasks have a metric that is not finite, since the mean is not finite then either."""
    for suffix, result in results.items():
        for name, curve in result.curves.items():
            bad = int((~torch.isfinite(curve[:, -1])).sum())
            if bad:
                log.warning(
                    "%s of %d of %d test tasks is not finite: adaptation diverged there; a smaller algorithm.inner_lr "
                    "or fewer algorithm.test_steps is the usual cure",
                    name + suffix,
                    bad,
                    len(curve),
                )


def evaluate(
    algorithm: Algorithm,
    task: Task,
    split: Split,
    episodes: int,
    *,
    batch: int,
    shape: EpisodeShape | None = None,
    stopped: Callable[[], int | None] = lambda: None,
    on_predictions: OnPredictions | None = None,
    label: str = "",
) -> Result:
    """Adapt a learner to the fixed tasks of a split and measure it on each of them.

    Args:
        algorithm: Learner to evaluate.
        task: Task family that the tasks are drawn from.
        split: ``train``, ``val`` or ``test``.
        episodes: Number of tasks. Tasks 0..``episodes`` - 1 of the split are evaluated.
        batch: Number of tasks per batch.
        shape: Ways, shots and queries of an episode; ``None`` for the task's own.
        stopped: Returns the number of a signal once the process was asked to stop, else ``None``.
        on_predictions: Function that is called with the logits of a classifier and the labels of each batch.
        label: What the progress line says of the episodes, such as ``20way``.

    Returns:
        The metrics of each task, on the CPU.

    Raises:
        Interrupted: ``stopped`` returned a signal before a batch.
    """
    curves: dict[str, Tensor] = {}
    doing = f"{'validating' if split == 'val' else 'testing'} {label}".strip()
    with (
        Progress(doing, episodes, "tasks") as progress,
        watching(algorithm, on_predictions),
    ):
        for first in range(0, episodes, batch):
            if (signal := stopped()) is not None:
                raise Interrupted(signal)
            seed_generators(derived_seed(task.seed, split, first, stream=9), task.device)
            indices = range(first, min(first + batch, episodes))
            for places, tasks in task.batches(split, indices, shape):
                for name, values in algorithm.evaluate(tasks).items():
                    # Small tensors that stay would keep the memory of larger ones between them from being used again.
                    if name not in curves:
                        curves[name] = values.new_empty(episodes, *values.shape[1:])
                    curves[name][first : first + len(indices)][places] = values
            progress.update(len(indices))
    return Result({name: values.cpu() for name, values in curves.items()}, task.tested_together)


@contextmanager
def watching(algorithm: Algorithm, on_predictions: OnPredictions | None) -> Iterator[None]:
    """Let a function see the predictions of a classifier that the block evaluates.

    Args:
        algorithm: Any learner.
        on_predictions: Function of logits [T, N, way] and labels [T, N].
    """
    if isinstance(algorithm, SupervisedAlgorithm):
        algorithm.on_predictions = on_predictions
    try:
        yield
    finally:
        if isinstance(algorithm, SupervisedAlgorithm):
            algorithm.on_predictions = None


def calibration(results: Mapping[str, Result]) -> dict[str, Any]:
    """Return ``{"calibration": ...}`` with the measures of each suffix at each temperature, ``{}`` without classes."""
    found = {
        suffix: [
            {"temperature": temperature, **Calibration(sums, result.together).as_dict()}
            for temperature, sums in result.calibration.items()
        ]
        for suffix, result in results.items()
        if result.calibration
    }
    return {"calibration": found} if found else {}
