"""Judging a learner on held-out tasks: means over episodes with 95 % confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from metarun.algorithms.base import Algorithm
from metarun.errors import Interrupted
from metarun.evaluation.statistics import interquartile_mean, percentiles, resampled
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape
from metarun.tasks.rng import derived_seed
from metarun.types import Split


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` tasks; ``ci95`` is half the width of its 95 % interval, 1.96 s / sqrt(n)."""

    mean: float
    ci95: float
    n: int

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """From one value a task, [n]."""
        values = values.double()
        spread = float(values.std()) if len(values) > 1 else float("nan")
        return cls(float(values.mean()), 1.96 * spread / sqrt(len(values)), len(values))

    def as_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "ci95": self.ci95, "n": self.n}


@dataclass(frozen=True)
class Robust:
    """The interquartile mean over ``n`` tasks, and its 95 % interval (Agarwal et al. 2021, arXiv:2108.13264).

    The mean of what is left without the lowest and the highest quarter, rounded down; the interval is between
    percentiles of bootstrap samples of the tasks, always the same ones. Returns are often skewed, and this says
    more of most tasks than their mean does.
    """

    iqm: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Tensor) -> Robust:
        """From one value a task, [n]."""
        scores = values.double().numpy()
        low, high = percentiles(interquartile_mean(resampled([scores])))
        return cls(float(interquartile_mean(scores)), float(low), float(high), len(scores))

    def as_dict(self) -> dict[str, Any]:
        return {"iqm": self.iqm, "low": self.low, "high": self.high, "n": self.n}


@dataclass(frozen=True)
class Result:
    """Every metric of every task, [n, k + 1] after 0..k adaptation steps; the last column is the result."""

    curves: dict[str, Tensor]

    def final(self) -> dict[str, Estimate]:
        """The result, metric by metric."""
        return {name: Estimate.of(curve[:, -1]) for name, curve in self.curves.items()}

    def adaptation(self, metric: str) -> list[dict[str, Any]]:
        """``metric`` after each adaptation step; one entry for a learner that adapts at once.

        Of a learner of control with a memory, in each ``episode`` of the trial, from 1: that is where it adapts.
        """
        if "episode_return" in self.curves:
            columns = self.curves["episode_return"].unbind(1)
            return [{"episode": number, **Estimate.of(column).as_dict()} for number, column in enumerate(columns, 1)]
        columns = self.curves[metric].unbind(1)
        return [{"step": step, **Estimate.of(column).as_dict()} for step, column in enumerate(columns)]


def final(results: Mapping[str, Result]) -> dict[str, Estimate]:
    """The results of several episode shapes in one table, each metric's name followed by its shape's suffix."""
    return {name + suffix: estimate for suffix, result in results.items() for name, estimate in result.final().items()}


def robust(task: Task, results: Mapping[str, Result]) -> dict[str, Any]:
    """For families of control: ``{"robust": ...}``, the task's metric as an interquartile mean."""
    if task.kind != "control":
        return {}
    return {
        "robust": {
            task.metric + suffix: Robust.of(result.curves[task.metric][:, -1]).as_dict()
            for suffix, result in results.items()
        }
    }


def evaluate(
    algorithm: Algorithm,
    task: Task,
    split: Split,
    episodes: int,
    *,
    batch: int,
    shape: EpisodeShape | None = None,
    stopped: Callable[[], int | None] = lambda: None,
) -> Result:
    """Adapt to and judge tasks 0..``episodes`` - 1 of ``split``, ``batch`` at a time.

    Raises :class:`Interrupted` between batches once ``stopped`` names a signal.
    """
    parts: dict[str, list[Tensor]] = {}
    for first in range(0, episodes, batch):
        if (number := stopped()) is not None:
            raise Interrupted(number)
        torch.manual_seed(derived_seed(task.seed, split, first, stream=9))
        indices = range(first, min(first + batch, episodes))
        for name, values in algorithm.evaluate(task.batch(split, indices, shape)).items():
            parts.setdefault(name, []).append(values)
    return Result({name: torch.cat(each).cpu() for name, each in parts.items()})
