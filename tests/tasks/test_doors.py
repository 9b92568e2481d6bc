"""Doors: what actions do, and the references against enumerations of everything that can happen."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from metarun.algorithms.rl.collect import Transition, collect
from metarun.errors import UserError
from metarun.tasks.rl.doors import Doors, best_return


def doors(**changed: Any) -> Doors:
    values: dict[str, Any] = {"doors": 2, "cost": 1.5, "actions": "discrete", "horizon": 3, "episodes": 3}
    return Doors(0, **(values | changed))


def test_a_door_ends_the_episode_and_waiting_does_not() -> None:
    task = doors(doors=3, cost=0.75)
    env = task.batch("test", range(300))
    state = env.reset(4, None)
    actions = torch.tensor([0, 1, 2, 3]).expand(300, 4)
    moved, reward, ended = env.step(state, actions, None)
    right = actions == torch.from_numpy(task.prizes("test", range(300)))[:, None]
    assert torch.equal(right[:, :3].sum(1), torch.ones(300).long())
    assert torch.equal(reward, torch.where(right, 1.0, -0.75) * (actions < 3))
    assert torch.equal(ended, actions < 3)
    assert torch.equal(env.observe(moved), torch.ones(300, 4, 1))
    shares = torch.bincount(torch.from_numpy(task.prizes("train", range(3000)))) / 3000
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3, dtype=shares.dtype), atol=0.03, rtol=0)
    plane = doors(doors=3, cost=0.75, actions="continuous").batch("test", range(300))
    numbers = torch.tensor([-7.0, -0.1, 0.1, 0.6]).expand(300, 4)[..., None]
    _, same, over = plane.step(state, numbers, None)
    assert torch.equal(same, reward)
    assert torch.equal(over, ended)
    with pytest.raises(UserError, match=r"task\.doors=1: at least 2 doors are needed to hide the prize"):
        doors(doors=1)


@pytest.mark.parametrize(("count", "episodes", "cost"), [(2, 3, 1.5), (3, 3, 1.0), (3, 2, 0.1), (2, 2, 9.0)])
def test_the_optimum_is_the_best_of_all_plans(count: int, episodes: int, cost: float) -> None:
    """A plan says, as long as the prize is not found, which door to open in each episode, or (``count``) to wait."""

    def worth(plan: tuple[int, ...], prize: int) -> float:
        paid, found = 0.0, False
        for choice in plan:
            found = found or choice == prize
            paid += 1.0 if found else 0.0 if choice == count else -cost
        return paid

    plans = product(range(count + 1), repeat=episodes)
    best = max(sum(worth(plan, prize) for prize in range(count)) / count for plan in plans)
    assert best_return(count, episodes, cost, foresight=True) == pytest.approx(best, abs=1e-12)


def test_references_are_what_such_players_get() -> None:
    for task in (doors(), doors(doors=3, cost=0.2, episodes=2)):
        env = task.batch("val", range(4000))
        known = torch.from_numpy(task.prizes("val", range(4000)))[:, None]

        def uniform(transition: Transition) -> torch.Tensor:
            return transition.observation.new_zeros(*transition.previous_reward.shape, task.doors + 1)  # noqa: B023

        def oracle(transition: Transition) -> torch.Tensor:
            return 1e3 * torch.nn.functional.one_hot(known, task.doors + 1).float()  # noqa: B023

        found = task.references("val", range(10))
        for name, act in (("random", uniform), ("oracle", oracle)):
            returns = collect(env, task.spec, act, 1, task.episodes, env.generator()).returns()
            interval = 3 * float(returns.std()) / 4000**0.5 + 1e-6
            assert float(returns.mean()) == pytest.approx(found[name], abs=interval)
        assert found["myopic"] <= found["optimum"] <= found["oracle"] == task.episodes
    assert doors().references("val", [0])["myopic"] == 0
    willing = doors(doors=3, cost=0.2, episodes=2).references("val", [0])  # who opens at once if it pays at once
    assert willing["myopic"] == willing["optimum"] == pytest.approx(0.8)
    assert doors().references("val", [0])["optimum"] == 1.75
