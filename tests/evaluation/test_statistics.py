"""A report's numbers against tables, formulas and loops of their own."""

from __future__ import annotations

import math
from statistics import mean, stdev

import numpy as np
import pytest
import torch

from metarun.evaluation.evaluator import RobustEstimate
from metarun.evaluation.statistics import (
    interquartile_mean,
    normalised_area,
    over_episodes,
    over_seeds,
    paired,
    percentiles,
    performance_profile,
    proportion_interval,
    standard_error,
    stratified_bootstrap,
    t_quantile,
)


@pytest.mark.parametrize(
    ("freedom", "value"),  # of any printed table of Student's t, two-sided 95 %
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (9, 2.26216), (10, 2.22814), (30, 2.04227),
     (120, 1.97993)],
)  # fmt: skip
def test_students_t(freedom: int, value: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(value, rel=3e-6)


def test_an_interval_over_seeds() -> None:
    found = over_seeds([0.90, 0.94, 0.98])
    assert found.mean == pytest.approx(0.94)
    assert found.half_width == pytest.approx(4.302652729911275 * 0.04 / math.sqrt(3))
    assert found.n == 3
    assert math.isnan(over_seeds([0.9]).half_width)


def test_an_interval_over_episodes_adds_the_seeds_own_variances() -> None:
    a, b = [1.0, 2.0, 4.0], [0.0, 5.0, 5.0, 6.0]
    found = over_episodes([a, b])
    assert found.mean == pytest.approx((mean(a) + mean(b)) / 2)  # each seed counts alike
    assert found.half_width == pytest.approx(1.96 * math.sqrt(stdev(a) ** 2 / 3 + stdev(b) ** 2 / 4) / 2)
    assert found.n == 7


def test_an_interval_over_groups_is_that_of_independent_groups() -> None:
    values = np.random.default_rng(0).standard_normal(60)
    assert standard_error(values) == pytest.approx(stdev(values) / math.sqrt(60))
    groups = values.reshape(15, 4).mean(1)
    assert standard_error(values, 4) == pytest.approx(stdev(groups) / math.sqrt(15))
    assert standard_error(np.repeat(groups, 4), 4) == pytest.approx(stdev(groups) / math.sqrt(15))
    assert standard_error(np.repeat(groups, 4)) < 0.6 * stdev(groups) / math.sqrt(15), "as if they were independent"
    short = values[:10]  # the last group has two values
    sums = [sum(short[i : i + 4] - mean(short)) for i in (0, 4, 8)]
    assert standard_error(short, 4) == pytest.approx(math.sqrt(3 / 2 * sum(s * s for s in sums)) / 10)
    assert math.isnan(standard_error(short, 10))
    zero = np.zeros(60)
    assert paired([values], [zero], 4).episodes.half_width == pytest.approx(1.96 * standard_error(values, 4))


def test_a_paired_interval_is_of_differences_and_not_of_two_means() -> None:
    a, b = [[0.10, 0.52, 0.91], [0.20, 0.63, 0.98]], [[0.05, 0.50, 0.85], [0.18, 0.55, 0.95]]
    found = paired(a, b)
    first, second = [0.05, 0.02, 0.06], [0.02, 0.08, 0.03]
    assert found.episodes.mean == found.seeds.mean == pytest.approx((mean(first) + mean(second)) / 2)
    by_hand = 1.96 / 2 * math.sqrt(stdev(first) ** 2 / 3 + stdev(second) ** 2 / 3)
    assert found.episodes.half_width == pytest.approx(by_hand)
    assert found.episodes.excludes_zero
    assert over_episodes(a).half_width > 10 * by_hand  # the episodes differ far more than the learners do
    gap = abs(mean(first) - mean(second)) / math.sqrt(2)  # of two values
    assert found.seeds.half_width == pytest.approx(12.706204736432095 * gap / math.sqrt(2))


def test_the_area_under_a_curve() -> None:
    assert normalised_area([0, 1, 3], [0.0, 1.0, 2.0]) == pytest.approx((0.5 * 1 + 1.5 * 2) / 3)


def test_an_interquartile_mean_is_the_evaluators() -> None:
    values = np.random.default_rng(0).normal(size=(3, 11))
    found = interquartile_mean(values)
    assert found.tolist() == pytest.approx([RobustEstimate.of(torch.from_numpy(row)).iqm for row in values])


def test_a_bootstrap_draws_seeds_within_their_task() -> None:
    tasks = [np.array([0.0, 1.0]), np.array([10.0, 11.0, 12.0])]
    drawn = stratified_bootstrap(tasks)
    assert set(drawn[:, :2].ravel()) == {0.0, 1.0}
    assert set(drawn[:, 2:].ravel()) == {10.0, 11.0, 12.0}
    assert np.array_equal(drawn, stratified_bootstrap(tasks))
    low, high = percentiles(drawn[:, :2].mean(-1))  # 0, .5 or 1, with 1/4, 1/2 and 1/4
    assert (low, high) == (0.0, 1.0)
    assert drawn[:, :2].mean() == pytest.approx(0.5, abs=0.05)


def test_a_profile_counts_runs_above_a_threshold() -> None:
    found = performance_profile(np.array([0.0, 0.5, 1.0, 0.7]), np.array([0.0, 0.5, 0.9, 1.0]))
    assert found.tolist() == [0.75, 0.5, 0.25, 0.0]


def test_an_interval_between_percentiles_holds_95_percent() -> None:
    low, high = percentiles(np.stack([np.arange(1001.0), -np.arange(1001.0)], 1))
    assert low.tolist() == pytest.approx([25, -975])
    assert high.tolist() == pytest.approx([975, -25])


def test_an_interval_of_a_proportion_holds_the_shares_that_a_score_test_does_not_reject() -> None:
    for hits, n in ((0, 7), (8, 10), (70, 70), (1, 3)):
        low, high = proportion_interval(hits, n)
        shares = np.linspace(0, 1, 100001)[1:-1]
        kept = shares[np.abs(hits / n - shares) <= 1.96 * np.sqrt(shares * (1 - shares) / n)]
        assert (low, high) == (pytest.approx(kept.min(), abs=2e-5), pytest.approx(kept.max(), abs=2e-5))
