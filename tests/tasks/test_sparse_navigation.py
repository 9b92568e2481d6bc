"""Sparse navigation against a plain loop, its oracle against a perfect walker, and its picture."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarun.algorithms.rl.collect import Transition, collect
from metarun.algorithms.rl.distributions import MIN_LOG_STD
from metarun.tasks.rl.sparse_navigation import SparseNavigation
from tests.algorithms.test_pearl import pearl

TASK = SparseNavigation(0, radius=0.2, horizon=20, episodes=2)


def walked(env: Any, wander: float) -> Any:
    def act(transition: Transition) -> Tensor:
        mean = 10 * (env.goals - transition.observation)
        return torch.cat([mean, torch.full_like(mean, math.log(wander) if wander else MIN_LOG_STD)], -1)

    return collect(env, TASK.spec, act, 3, env.episodes, env.generator())


def test_it_is_a_plain_loop() -> None:
    env = TASK.batch("train", range(5))
    goals = TASK.goals("train", range(5))
    np.testing.assert_allclose(np.linalg.norm(goals, axis=1), 1)
    assert (goals[:, 1] >= 0).all()
    rollout, paid = walked(env, wander=0.5), 0
    assert rollout.mask.all()
    assert not rollout.terminated.any()
    for t in range(5):
        for e in range(3):
            x = np.zeros(2)
            for s in range(40):
                x = np.zeros(2) if s == 20 else x
                np.testing.assert_allclose(rollout.observation[t, e, s], x, atol=1e-6)
                x = x + 0.1 * np.clip(rollout.action[t, e, s].numpy(), -1, 1)
                distance = math.dist(x, goals[t])
                reward = 1 - distance if distance <= 0.2 else 0.0
                assert float(rollout.reward[t, e, s]) == pytest.approx(reward, abs=1e-5)
                state = torch.tensor(x)[None, None].expand(5, 1, 2)
                assert float(env.shaped(state, torch.zeros(5, 1))[t]) == pytest.approx(-distance, abs=1e-5)
                paid += reward > 0
    assert 0 < paid < 600


def test_oracle_is_what_a_perfect_walker_gets() -> None:
    found = walked(TASK.batch("val", range(50)), wander=0).returns().mean()
    assert TASK.references("val", range(50))["oracle"] == pytest.approx(float(found), rel=1e-3)


def test_upper_half_circle_is_covered_evenly() -> None:
    goals = TASK.goals("train", range(4000))
    angle = np.arctan2(goals[:, 1], goals[:, 0]) / np.pi
    np.testing.assert_allclose(np.quantile(angle, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.03)


def test_the_picture_shows_each_episode() -> None:
    figure = TASK.picture(pearl(TASK, prior_episodes=1))
    assert all(len(ax.lines) == 2 + 3 for ax in figure.axes[:4])
