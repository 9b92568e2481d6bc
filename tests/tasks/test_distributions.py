"""What task families draw has the published distributions: ranges, shapes, and independence of one quantity of another.

The draws are those of a seed, and so are always the same ones.
"""

from __future__ import annotations

from math import pi, sqrt
from statistics import NormalDist

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metarun.tasks.regression.sinusoid import Sinusoid
from metarun.tasks.rl.bandit import Bandit
from metarun.tasks.rl.cartpole import CartPole
from metarun.tasks.rl.locomotion import Velocity
from metarun.tasks.rl.mdp import TabularMDP
from metarun.tasks.rl.navigation import Navigation
from metarun.tasks.rl.sparse_navigation import SparseNavigation

Array = NDArray[np.float64]
MANY = range(4000)


def furthest(values: Array, cumulative: Array) -> float:
    """Kolmogorov and Smirnov's distance from what the sorted ``values`` should be below, times the root of n."""
    n = values.size
    return sqrt(n) * float(np.maximum(cumulative - np.arange(n) / n, np.arange(1, n + 1) / n - cumulative).max())


def assert_uniform(values: Array, low: float, high: float) -> None:
    """U[low, high]: the whole range, and nothing else."""
    x = np.sort(values.ravel())
    slack = 20 / x.size * (high - low)
    assert low <= x[0] < low + slack
    assert high - slack < x[-1] <= high
    assert furthest(x, (x - low) / (high - low)) < 1.95  # 1 in 1000


def assert_normal(values: Array, mean: float, deviation: float) -> None:
    x = np.sort(values.ravel())
    law = NormalDist(mean, deviation)
    assert furthest(x, np.array([law.cdf(v) for v in x])) < 1.95


def assert_independent(*columns: Array) -> None:
    """As far as correlations tell, of ranks and of their squares."""
    ranks = np.stack([np.argsort(np.argsort(c.ravel())) / c.size - 0.5 for c in columns])
    for each in (ranks, ranks**2):
        correlation = np.corrcoef(each) - np.eye(len(columns))
        assert np.abs(correlation).max() < 3.9 / sqrt(columns[0].size)  # 1 in 10,000 a pair


def test_sinusoids() -> None:
    """Finn et al. 2017, section 5.1: A ~ U[.1, 5], phase ~ U[0, pi], x ~ U[-5, 5]."""
    task = Sinusoid(1, shot=5, query=5, test_shots=[], frequency=[0.8, 1.2])
    amplitude, phase, frequency = task.curves("train", MANY)
    assert_uniform(amplitude, 0.1, 5.0)
    assert_uniform(phase, 0.0, pi)
    assert_uniform(frequency, 0.8, 1.2)
    batch = task.batch("train", MANY)
    x = torch.cat([batch.support.x, batch.query.x], 1)[..., 0].double().numpy()
    assert_uniform(x, -5.0, 5.0)
    assert_independent(amplitude, phase, frequency, *x.T)


def test_navigation_goals() -> None:
    """Finn et al. 2017, section 5.3.1: uniform in a square of side 1 around the start."""
    task = Navigation(1, actions="scaled", reward="distance", horizon=5, episodes=1, test_goals="drawn")
    for split in ("train", "test"):
        goals = task.goals(split, MANY)  # type: ignore[arg-type]
        for coordinate in goals.T:
            assert_uniform(coordinate, -0.5, 0.5)
        assert_independent(*goals.T)
    start = task.batch("train", range(3)).reset(2, None)
    assert (start == 0).all()


def test_sparse_navigation_goals() -> None:
    """Rakelly et al. 2019, section 6.3: on the upper half of the unit circle."""
    goals = SparseNavigation(1, radius=0.2, horizon=5, episodes=2).goals("train", MANY)
    np.testing.assert_allclose(np.square(goals).sum(1), 1)
    assert (goals[:, 1] >= 0).all()
    assert_uniform(np.arctan2(goals[:, 1], goals[:, 0]), 0.0, pi)


def test_random_decision_processes() -> None:
    """Duan et al. 2016, section 3.2: mean rewards N(1, 1), rewards N(mean, 1), transitions Dirichlet(1, .., 1)."""
    task = TabularMDP(1, states=2, actions=2, horizon=3, episodes=1)
    moves, means = task.tables("train", MANY)
    assert_normal(means[:, 0, 0], 1.0, 1.0)
    assert_independent(*means.reshape(len(means), -1).T, moves[:, 0, 0, 0], moves[:, 1, 1, 0])
    assert_uniform(moves[:, 0, 0, 0], 0.0, 1.0)  # Dirichlet(1, 1)
    env = task.batch("train", range(2))
    action = torch.ones(2, 2000, dtype=torch.long)
    _, reward, _ = env.step(env.reset(2000, None), action, env.generator())
    for task_number in range(2):
        assert_normal(reward[task_number].double().numpy(), means[task_number, 0, 1], 1.0)


@pytest.mark.parametrize("rewards", ["bernoulli", "gaussian"])
def test_bandits(rewards: str) -> None:
    """Duan et al. 2016, section 3.1: chances U[0, 1]; Gaussian arms around N(1, 1)."""
    means = Bandit(1, arms=3, pulls=2, rewards=rewards).means("train", MANY)  # type: ignore[arg-type]
    assert_independent(*means.T)
    for arm in means.T:
        assert_uniform(arm, 0.0, 1.0) if rewards == "bernoulli" else assert_normal(arm, 1.0, 1.0)


def test_cartpoles_start_as_gymnasiums() -> None:
    one = [1.0, 1.0]
    task = CartPole(1, gravity=one, cart_mass=one, pole_mass=one, half_length=one, force=one, extrapolate=0.0,
                    swapped=0.0, horizon=5, episodes=1)  # fmt: skip
    env = task.batch("train", range(2))
    state = env.reset(1000, env.generator()).double().numpy()
    for quantity in np.moveaxis(state, -1, 0):
        assert_uniform(quantity, -0.05, 0.05)
    assert_independent(*state.reshape(-1, 4).T)


def test_speeds_that_robots_are_asked_for() -> None:
    assert_uniform(Velocity(between=[0.5, 2.0]).goals(1, "train", MANY), 0.5, 2.0)
