"""Means, confidence intervals, paired differences and aggregates of NumPy arrays. This module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import atan, cos, isfinite, nan, pi, sin, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
BOOTSTRAP = 2000
"""Number of bootstrap samples."""


@dataclass(frozen=True)
class Mean:
    """Mean of ``n`` values with a 95 % confidence interval.

    Attributes:
        mean: Mean of the values.
        half_width: Half the width of the interval. NaN if a single value leaves the interval unknown.
        n: Number of values.
    """

    mean: float
    half_width: float
    n: int

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half_width

    @property
    def excludes_zero(self) -> bool:
        """True if the interval is known and does not contain zero."""
        return isfinite(self.half_width) and abs(self.mean) > self.half_width


def over_seeds(values: ArrayLike) -> Mean:
    """Return the mean over seeds with Student's t interval, from one value per seed."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return Mean(float(x.mean()), nan, len(x))
    return Mean(float(x.mean()), t_quantile(0.975, len(x) - 1) * float(x.std(ddof=1)) / sqrt(len(x)), len(x))


def over_seeds_without_test_noise(means: ArrayLike, half_widths: ArrayLike) -> Mean:
    """Return the mean over seeds with Student's t interval for an unlimited number of test tasks.

    The variance over seeds is reduced by the mean variance that the finite number of test tasks explains, but not below
    0.

    Args:
        means: Test mean of each seed.
        half_widths: Half the width of the 95 % interval of each test mean.
    """
    seeds, x = over_seeds(means), np.asarray(means, dtype=np.float64)
    explained = float(np.mean((np.asarray(half_widths, dtype=np.float64) / 1.96) ** 2))
    beyond = max(0.0, float(x.var(ddof=1)) - explained)
    return Mean(seeds.mean, t_quantile(0.975, len(x) - 1) * sqrt(beyond / len(x)), len(x))


def standard_error(values: ArrayLike, together: int = 1) -> float:
    """Return the standard error of a mean, s / sqrt(n) for independent values. NaN for a single value or group.

    Values that share a random quantity, such as the number of points of a task, tell less than independent ones. Each
    ``together`` consecutive values are one group, and the error is that of the mean of independent groups,
    sqrt(G / (G - 1) sum_g (sum_{i in g} (x_i - mean))^2) / n.

    Args:
        values: One value per task, [n].
        together: Number of consecutive values that depend on each other.
    """
    x = np.asarray(values, dtype=np.float64)
    sums = np.add.reduceat(x - x.mean(), np.arange(0, len(x), together))
    groups = len(sums)
    return sqrt(groups / (groups - 1) * float(np.square(sums).sum())) / len(x) if groups > 1 else nan


def over_episodes(samples: Sequence[ArrayLike], together: int = 1) -> Mean:
    """Return the mean of the seeds' means with the interval over test episodes, for these trained learners.

    Half the interval's width is 1.96 times the standard error that the episodes leave.

    Args:
        samples: One array of episode results per seed.
        together: Number of consecutive episodes that depend on each other; see :func:`standard_error`.
    """
    arrays = [np.asarray(each, dtype=np.float64) for each in samples]
    error = sqrt(sum(standard_error(x, together) ** 2 for x in arrays)) / len(arrays)
    return Mean(float(np.mean([x.mean() for x in arrays])), 1.96 * error, sum(map(len, arrays)))


@dataclass(frozen=True)
class Paired:
    """Difference a - b on the same episodes.

    Attributes:
        episodes: Mean difference with the interval over other episodes, for the same trained learners.
        seeds: Mean difference with the interval over other seeds, for learners trained anew.
    """

    episodes: Mean
    seeds: Mean


def paired(a: Sequence[ArrayLike], b: Sequence[ArrayLike], together: int = 1) -> Paired:
    """Return the paired difference of two learners.

    Args:
        a: One array of episode results per seed.
        b: The same for the other learner. Entry i holds the same episodes in the same order as entry i of ``a``.
        together: Number of consecutive episodes that depend on each other; see :func:`standard_error`.

    Raises:
        ValueError: The numbers of seeds differ.
    """
    differences = [np.asarray(x, dtype=np.float64) - np.asarray(y, dtype=np.float64) for x, y in zip(a, b, strict=True)]
    return Paired(over_episodes(differences, together), over_seeds([d.mean() for d in differences]))


def proportion_interval(hits: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion, which stays within 0..1 and is not empty at 0 or 1."""
    z, share = 1.96, hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


@lru_cache
def t_quantile(probability: float, freedom: int) -> float:
    """Return a quantile of Student's t distribution by bisection, for ``probability`` > 0.5 and whole ``freedom``."""
    low, high = 0.0, 1e3
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return high


def t_cdf(t: float, freedom: int) -> float:
    """Return P(T <= t) in closed form (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = atan(t / sqrt(freedom))
    power, total = (1.0, 1.0) if freedom % 2 == 0 else (cos(angle), cos(angle))
    for k in range(2 + freedom % 2, freedom - 1, 2):
        power *= cos(angle) ** 2 * (k - 1) / k
        total += power
    if freedom % 2 == 0:
        return (1 + sin(angle) * total) / 2
    return 0.5 + (angle + (sin(angle) * total if freedom > 1 else 0.0)) / pi


def normalised_area(positions: ArrayLike, values: ArrayLike) -> float:
    """Return the area under a curve by the trapezoidal rule, divided by the width of the curve."""
    x, y = np.asarray(positions, dtype=np.float64), np.asarray(values, dtype=np.float64)
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def interquartile_mean(values: Array) -> Array:
    """Return the mean over the last axis without its lowest n // 4 and highest n // 4 values (arXiv:2108.13264)."""
    n = values.shape[-1]
    return np.sort(values, axis=-1)[..., n // 4 : n - n // 4].mean(-1)


def stratified_bootstrap(scores: Sequence[Array]) -> Array:
    """Resample the seeds of each task with replacement (Agarwal et al. 2021, section 4.1). The random seed is fixed.

    Args:
        scores: One array of seeds' scores per task.

    Returns:
        Bootstrap samples, [BOOTSTRAP, number of scores].
    """
    random = np.random.default_rng(0)
    return np.concatenate([x[random.integers(len(x), size=(BOOTSTRAP, len(x)))] for x in scores], axis=1)


def percentiles(samples: Array) -> tuple[Array, Array]:
    """Return the 2.5th and the 97.5th percentile over the first axis."""
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    return low, high


def performance_profile(scores: Array, thresholds: Array) -> Array:
    """Return the share of ``scores`` [..., n] above each of the ``thresholds`` [k], [..., k]."""
    return (scores[..., None, :] > thresholds[:, None]).mean(-1)
