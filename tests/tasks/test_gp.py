"""Gaussian-process curves: closed-form covariances, purity in (seed, split, index), the true posterior."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, exp, pi, sqrt
from typing import Any

import numpy as np
import pytest
import torch

from metarun.config.build import construct
from metarun.errors import UserError
from metarun.evaluation.evaluator import evaluate
from metarun.tasks.episode import TaskBatch
from metarun.tasks.regression.gp import GaussianProcesses
from metarun.tasks.rng import normals, uniforms
from tests.composed import composed


def task(seed: int = 0, **changes: Any) -> GaussianProcesses:
    return construct({**composed("task=regression/gp")["task"], **changes}, seed=seed)


KERNELS: dict[str, Callable[[float, float, float, float], float]] = {
    "rbf": lambda d, length, scale, period: scale**2 * exp(-(d**2) / (2 * length**2)),
    "matern52": lambda d, length, scale, period: (
        scale**2 * (1 + sqrt(5) * d / length + 5 * d**2 / (3 * length**2)) * exp(-sqrt(5) * d / length)
    ),
    # 2 sin^2 a = 1 - cos 2a
    "periodic": lambda d, length, scale, period: scale**2 * exp(-(1 - cos(2 * pi * d / period)) / length**2),
    "weakly_periodic": lambda d, length, scale, period: (
        scale**2 * exp(-(d**2) / (2 * length**2)) * exp(-(1 - cos(2 * pi * d / period)))
    ),
    "mixture": lambda d, length, scale, period: (
        scale**2 * (exp(-(d**2) / (2 * 0.3**2)) + exp(-(d**2) / (2 * length**2)))
    ),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_draws_have_the_kernels_covariance(kernel: str) -> None:
    """Of 40,000 curves at four points, each entry within five standard errors of the closed form plus noise."""
    lengths = [0.3, 0.4] if kernel == "mixture" else [0.4, 0.4]
    family = task(kernel=kernel, length=lengths, scale=[0.8, 0.8], period=[1.3, 1.3], noise=0.1)
    x, n = np.array([-1.0, -0.7, 0.1, 0.4]), 40_000
    y = family.draw("train", range(n), np.tile(x, (n, 1)))
    closed = np.array([[KERNELS[kernel](abs(a - b), 0.4, 0.8, 1.3) for a in x] for b in x]) + 0.01 * np.eye(4)
    assert abs(y.mean(0)).max() < 5 * sqrt(closed[0, 0] / n)
    error = np.sqrt((closed**2 + np.outer(closed.diagonal(), closed.diagonal())) / n)
    assert (abs(y.T @ y / n - closed) < 5 * error).all()


def test_hyperparameters_are_each_tasks_own_and_in_range() -> None:
    family = task(length=[0.1, 0.6], scale=[0.1, 1.0])
    indices = range(500)
    zero = np.zeros((500, 1))
    scale2 = family.covariance("train", indices, zero, zero)[:, 0, 0]
    at_1 = family.covariance("train", indices, zero, zero + 0.3)[:, 0, 0]
    length = 0.3 / np.sqrt(-2 * np.log(at_1 / scale2))
    for values, low, high in ((np.sqrt(scale2), 0.1, 1.0), (length, 0.1, 0.6)):
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.03)
    assert abs(np.corrcoef(np.sqrt(scale2), length)[0, 1]) < 0.15


def test_a_task_depends_on_seed_split_and_index_alone() -> None:
    family = task(3)
    batch = family.batch("train", range(16, 32))
    alone = family.batch("train", [21])
    for name in ("support", "query"):
        for part in ("x", "y"):
            whole, one = (getattr(getattr(b, name), part) for b in (batch, alone))
            assert torch.equal(whole[5], one[0])
    assert batch.query.x.shape == (16, 100, 1)
    assert not torch.equal(family.batch("val", [21]).query.y, alone.query.y)
    assert not torch.equal(task(4).batch("train", [21]).query.y, alone.query.y)


def test_numbers_of_context_points_fill_their_range_and_batches_do_not_mix_them() -> None:
    family = task(least_shot=3, shot=9)
    counts = [family.batch("train", [16 * k]).support.y.shape[1] for k in range(700)]
    assert set(counts) == set(range(3, 10))
    assert max(abs(counts.count(n) - 100) for n in range(3, 10)) < 5 * 9.3  # binomial
    with pytest.raises(UserError, match=r"task.together=16: tasks 0 to 319 .* runner.meta_batch"):
        family.batch("train", range(320))
    fixed = task(least_shot=7, shot=7)
    assert fixed.batch("train", range(320)).support.y.shape == (320, 7, 1)


def test_an_interval_counts_tasks_that_share_their_numbers_of_points_once() -> None:
    """A sum over query points differs far more between numbers of points than between curves."""

    class Sums:
        def evaluate(self, batch: TaskBatch) -> dict[str, torch.Tensor]:
            return {"sum": torch.ones_like(batch.query.y).sum((1, 2))[:, None]}

    family = task(query=30, least_query=3)
    found = evaluate(Sums(), family, "test", 16 * 12, batch=16).final()["sum"]  # type: ignore[arg-type]
    counts = [family.batch("test", [16 * k]).query.y.shape[1] for k in range(12)]
    assert found.ci95 == pytest.approx(1.96 * np.std(counts, ddof=1) / sqrt(12))
    assert found.as_dict()["together"] == 16
    assert "together" not in evaluate(Sums(), task(least_shot=50), "test", 32, batch=16).final()["sum"].as_dict()  # type: ignore[arg-type]


def test_numbers_of_query_points_vary_apart_from_those_of_context_points() -> None:
    family = task(least_shot=3, shot=9, least_query=2, query=9)
    sizes = [family.batch("train", [16 * k]) for k in range(400)]
    pairs = [(b.support.y.shape[1], b.query.y.shape[1]) for b in sizes]
    assert {q for _, q in pairs} == set(range(2, 10))
    assert abs(np.corrcoef(np.array(pairs).T)[0, 1]) < 0.15
    full = task(least_shot=3, shot=9, query=9).batch("train", [16])
    assert torch.equal(sizes[1].query.y, full.query.y[:, : pairs[1][1]])
    assert sizes[1].query.y.shape[1] < 9
    assert family.protocol()["query"] == "2 to 9 points beside the context"


def test_the_reference_with_a_floor_is_the_best_of_normals_no_narrower(float64: None) -> None:
    """Curve by curve and point by point: the narrowest deviation allowed that the true posterior is not wider than."""
    family = task(noise=0.02, length=[0.4, 0.4], scale=[1.0, 1.0], shot=9, least_query=2, query=9, floor=0.1)
    alone, both = [], []
    for t in range(40):
        batch = family.batch("test", [t])
        x, y = (p[0, :, 0] for p in (batch.support.x, batch.support.y))

        def k(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.exp(-((a[:, None] - b[None]) ** 2) / (2 * 0.4**2))

        inverse = torch.linalg.inv(k(x, x) + 0.02**2 * torch.eye(len(x)))
        nlls = []
        for at, value in zip(batch.query.x[0, :, 0], batch.query.y[0, :, 0], strict=True):
            cross = k(at[None], x)[0]
            std = (1 + 0.02**2 - cross @ inverse @ cross).sqrt()
            best = torch.distributions.Normal(cross @ inverse @ y, max(float(std), 0.1))
            nlls.append(-float(best.log_prob(value)))
        known = -float(torch.distributions.Normal(0.0, 0.1).log_prob(torch.tensor(0.0)))
        alone.append(np.mean(nlls))
        both.append(np.mean([*nlls, *[known] * len(x)]))
    found = family.references("test", range(40))
    assert found["nll of the true posterior, its deviations at least 0.1"] == pytest.approx(np.mean(alone), rel=1e-4)
    name = "nll_with_context of the true posterior, its deviations at least 0.1"
    assert found[name] == pytest.approx(np.mean(both), rel=1e-4)


def test_impossible_ranges_are_refused() -> None:
    for changes in ({"least_shot": 9, "shot": 5}, {"least_query": 101}, {"length": [0.6, 0.1]}, {"scale": [1.0]}):
        with pytest.raises(UserError, match=f"task.{next(iter(changes))}"):
            task(**changes)


def test_the_references_are_the_conditional_normal() -> None:
    """Against torch's multivariate normal: p(y*, y) / p(y) at one query point after another."""
    family = task(noise=0.05, query=3, kernel="matern52")
    indices = range(8)
    batch = family.batch("test", indices)
    x, y = (
        torch.cat([a, b], 1).double()[..., 0]
        for a, b in ((batch.support.x, batch.query.x), (batch.support.y, batch.query.y))
    )
    n, nlls = batch.support.y.shape[1], []
    for t in indices:
        for q in range(3):
            keep = [*range(n), n + q]
            at = x[t, keep].numpy()[None]
            K = torch.from_numpy(family.covariance("test", [t], at, at)[0]) + 0.05**2 * torch.eye(n + 1)
            joint, context = (
                torch.distributions.MultivariateNormal(torch.zeros(m, dtype=K.dtype), K[:m, :m]).log_prob(
                    y[t, keep][:m]
                )
                for m in (n + 1, n)
            )
            nlls.append(float(context - joint))
    assert family.references("test", indices)["nll of the true posterior"] == pytest.approx(np.mean(nlls), rel=1e-3)


def test_normals_are_standard_and_apart_by_stream() -> None:
    z = normals(0, "train", range(4000), 10, stream=2)
    assert z.mean() == pytest.approx(0, abs=0.02)
    assert z.var() == pytest.approx(1, abs=0.03)
    assert (z**4).mean() == pytest.approx(3, abs=0.15)
    assert abs(np.corrcoef(z.T) - np.eye(10)).max() < 0.08
    assert np.array_equal(normals(0, "train", [7], 10, stream=2)[0], z[7])
    assert not np.array_equal(z, normals(0, "train", range(4000), 10, stream=1))
    assert uniforms(0, "train", [0], 20, stream=2).shape == (1, 20)


def test_sawtooth_waves_rise_or_fall_by_their_scale_in_each_period() -> None:
    family = task(kernel="sawtooth", scale=[0.5, 2.0], period=[0.3, 0.6], noise=0.0)
    x = np.tile(np.linspace(-2, 2, 4001), (40, 1))
    waves = family.draw("val", range(40), x)
    u = uniforms(0, "val", range(40), 3)
    scale, period = 0.5 + 1.5 * u[:, 1], 0.3 + 0.3 * u[:, 2]
    rising = set()
    for wave, s, p in zip(waves, scale, period, strict=True):
        assert wave.min() >= 0
        assert wave.max() == pytest.approx(s, rel=0.01)
        steps = np.diff(wave) / 0.001
        jumps = np.abs(steps) > 2 * s / p
        slope = steps[~jumps].mean()
        np.testing.assert_allclose(steps[~jumps], slope, rtol=1e-6)
        assert abs(slope) == pytest.approx(s / p, rel=1e-6)
        assert abs(jumps.sum() - 4 / p) <= 1
        rising.add(slope > 0)
    assert rising == {True, False}
    noisy = task(kernel="sawtooth", scale=[0.5, 2.0], period=[0.3, 0.6], noise=0.1).draw("val", range(40), x)
    assert (noisy - waves).std() == pytest.approx(0.1, rel=0.02)
    assert family.references("test", range(3)) == {}
