"""Means, intervals, paired differences and aggregates, from plain arrays; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan, cos, isfinite, nan, pi, sin, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
BOOTSTRAP = 2000


@dataclass(frozen=True)
class Mean:
    """A mean of ``n`` values; ``half`` is half the width of its 95 % interval, NaN where one value tells nothing."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def excludes_zero(self) -> bool:
        return isfinite(self.half) and abs(self.mean) > self.half


def over_seeds(values: ArrayLike) -> Mean:
    """Of one value a seed: Student's t, since seeds are few."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return Mean(float(x.mean()), nan, len(x))
    return Mean(float(x.mean()), t_quantile(0.975, len(x) - 1) * float(x.std(ddof=1)) / sqrt(len(x)), len(x))


def over_seeds_beyond_tests(means: ArrayLike, halves: ArrayLike) -> Mean:
    """Student's interval of the mean over seeds, had every seed been tested on all tasks there are.

    ``means`` are the seeds' test means and ``halves`` the half-widths of their 95 % intervals: the variance over seeds
    less the mean variance that the finite tests explain, at least 0.
    """
    seeds, x = over_seeds(means), np.asarray(means, dtype=np.float64)
    explained = float(np.mean((np.asarray(halves, dtype=np.float64) / 1.96) ** 2))
    beyond = max(0.0, float(x.var(ddof=1)) - explained)
    return Mean(seeds.mean, t_quantile(0.975, len(x) - 1) * sqrt(beyond / len(x)), len(x))


def over_episodes(samples: Sequence[ArrayLike]) -> Mean:
    """Of one array of episodes a seed: what other episodes would change, with these seeds' learners as they are.

    The mean of the seeds' means, with the standard error that their episodes leave it, times 1.96.
    """
    arrays = [np.asarray(each, dtype=np.float64) for each in samples]
    variance = sum(x.var(ddof=1) / len(x) for x in arrays if len(x) > 1) / len(arrays) ** 2
    known = all(len(x) > 1 for x in arrays)
    mean = float(np.mean([x.mean() for x in arrays]))
    return Mean(mean, 1.96 * sqrt(variance) if known else nan, sum(map(len, arrays)))


@dataclass(frozen=True)
class Paired:
    """a - b on the same episodes: what other episodes would change, and what other seeds would."""

    episodes: Mean
    seeds: Mean


def paired(a: Sequence[ArrayLike], b: Sequence[ArrayLike]) -> Paired:
    """Of one array a seed each, the i-th of ``a`` and ``b`` judged on the same episodes in the same order."""
    differences = [np.asarray(x, dtype=np.float64) - np.asarray(y, dtype=np.float64) for x, y in zip(a, b, strict=True)]
    return Paired(over_episodes(differences), over_seeds([d.mean() for d in differences]))


def t_quantile(probability: float, freedom: int) -> float:
    """Of Student's t with whole degrees of freedom, for ``probability`` above one half, by bisection."""
    low, high = 0.0, 1e3
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_cumulative(middle, freedom) < probability else (low, middle)
    return high


def t_cumulative(t: float, freedom: int) -> float:
    """P(T <= t), in closed form (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = atan(t / sqrt(freedom))
    power, total = (1.0, 1.0) if freedom % 2 == 0 else (cos(angle), cos(angle))
    for k in range(2 + freedom % 2, freedom - 1, 2):
        power *= cos(angle) ** 2 * (k - 1) / k
        total += power
    if freedom % 2 == 0:
        return (1 + sin(angle) * total) / 2
    return 0.5 + (angle + (sin(angle) * total if freedom > 1 else 0.0)) / pi


def area(at: ArrayLike, values: ArrayLike) -> float:
    """Mean height of the curve through the points: its area by trapezoids, over its width."""
    x, y = np.asarray(at, dtype=np.float64), np.asarray(values, dtype=np.float64)
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def interquartile_mean(values: Array) -> Array:
    """Over the last axis, without the lowest and the highest quarter, rounded down (arXiv:2108.13264)."""
    n = values.shape[-1]
    return np.sort(values, axis=-1)[..., n // 4 : n - n // 4].mean(-1)


def resampled(scores: Sequence[Array]) -> Array:
    """Stratified bootstrap: all tasks' seeds drawn again within each task, [BOOTSTRAP, all]; the same ones always.

    ``scores`` has one array of seeds a task (Agarwal et al. 2021, section 4.1).
    """
    random = np.random.default_rng(0)
    return np.concatenate([x[random.integers(len(x), size=(BOOTSTRAP, len(x)))] for x in scores], axis=1)


def percentiles(samples: Array) -> tuple[Array, Array]:
    """The 2.5 and 97.5 percent points over the first axis."""
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    return low, high


def profile(scores: Array, thresholds: Array) -> Array:
    """Share of ``scores`` [..., n] above each threshold, [..., thresholds]."""
    return (scores[..., None, :] > thresholds[:, None]).mean(-1)
