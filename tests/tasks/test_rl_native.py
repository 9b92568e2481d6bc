"""CartPole and Pendulum against Gymnasium's own, and mazes against plain searches."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from metarun.algorithms.rl.collect import collect
from metarun.errors import UserError
from metarun.tasks.rl.cartpole import CartPole
from metarun.tasks.rl.maze import Maze
from metarun.tasks.rl.pendulum import Pendulum


def cartpole(**changed: Any) -> CartPole:
    values: dict[str, Any] = {
        "gravity": [9.8, 9.8], "cart_mass": [1.0, 1.0], "pole_mass": [0.1, 0.1], "half_length": [0.5, 0.5],
        "force": [10.0, 10.0], "extrapolate": 0.0, "swapped": 0.0, "horizon": 50, "episodes": 2,
    }  # fmt: skip
    return CartPole(0, **(values | changed))


def pendulum(**changed: Any) -> Pendulum:
    values: dict[str, Any] = {
        "gravity": [10.0, 10.0], "mass": [1.0, 1.0], "length": [1.0, 1.0], "torque": [2.0, 2.0],
        "extrapolate": 0.0, "swapped": 0.0, "horizon": 200, "episodes": 2,
    }  # fmt: skip
    return Pendulum(0, **(values | changed))


def maze(**changed: Any) -> Maze:
    values: dict[str, Any] = {
        "size": 5, "loops": 0.1, "layouts": None, "view": 1, "position": True, "horizon": 30, "episodes": 2,
    }  # fmt: skip
    return Maze(0, **(values | changed))


@pytest.fixture
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("other", [False, True], ids=["default", "other"])
def test_cartpole_is_gymnasiums(other: bool) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    reference: Any = gymnasium.make("CartPole-v1").unwrapped
    task = cartpole()
    if other:
        names = {"gravity": 12.0, "cart_mass": 0.7, "pole_mass": 0.3, "half_length": 0.8, "force": 7.0}
        task = cartpole(**{name: [value, value] for name, value in names.items()}, swapped=1.0)
        reference.gravity, reference.masscart, reference.masspole, reference.length, reference.force_mag = (
            names.values()
        )
        reference.total_mass, reference.polemass_length = 1.0, 0.3 * 0.8
    env = task.batch("train", [0])
    state = env.reset(6, env.generator())
    assert float(state.abs().max()) <= 0.05
    falls = 0
    for copy in range(6):
        reference.reset(seed=copy)
        reference.state, now = state[0, copy].numpy().copy(), state[:, copy : copy + 1]
        for step in range(100):
            action = (step + copy) % 2 if copy % 2 else (step // 10 + copy // 2) % 2
            _, reward, terminated, *_ = reference.step(1 - action if other else action)
            now, paid, ended = env.step(now, torch.tensor([[action]]), None)
            np.testing.assert_allclose(now[0, 0], reference.state, rtol=1e-10, atol=1e-12)
            assert (float(paid), bool(ended)) == (reward, terminated)
            if terminated:
                falls += 1
                break
    assert falls >= 3


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("other", [False, True], ids=["default", "other"])
def test_pendulum_is_gymnasiums(other: bool) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    reference: Any = gymnasium.make("Pendulum-v1").unwrapped
    task = pendulum()
    if other:
        task = pendulum(gravity=[8.0, 8.0], mass=[1.3, 1.3], length=[0.7, 0.7], torque=[3.0, 3.0], swapped=1.0)
        reference.g, reference.m, reference.l, reference.max_torque = 8.0, 1.3, 0.7, 3.0
    env = task.batch("train", [0])
    state = env.reset(4, env.generator())
    noise = np.random.default_rng(0)
    for copy in range(4):
        reference.reset(seed=0)
        reference.state, now = state[0, copy].numpy().copy(), state[:, copy : copy + 1]
        for _ in range(120):
            action = noise.normal(0.5, 3)
            seen, reward, terminated, *_ = reference.step(np.array([-action if other else action]))
            now, paid, ended = env.step(now, torch.tensor([[[action]]]), None)
            np.testing.assert_allclose(env.observe(now)[0, 0], seen, rtol=1e-5, atol=1e-6)  # theirs is rounded
            np.testing.assert_allclose(now[0, 0], reference.state, rtol=1e-9, atol=1e-11)
            assert float(paid) == pytest.approx(reward, rel=1e-9)
            assert bool(ended) == terminated


def test_constants_are_log_uniform_and_test_tasks_lie_outside_if_asked() -> None:
    task = cartpole(force=[5.0, 20.0], extrapolate=0.5, swapped=0.3)
    force = task.constants.draw(0, "train", range(4000))["force"]
    assert 5 <= force.min() < 5.1
    assert 19.6 < force.max() <= 20
    assert np.median(force) == pytest.approx(10, rel=0.05)
    outside = task.constants.draw(0, "test", range(4000))["force"]
    assert ((outside < 5) | (outside > 20)).all()
    assert (outside < 5).mean() == pytest.approx(0.5, abs=0.05)
    assert 2.5 <= outside.min() < 2.6
    assert 39 < outside.max() <= 40
    assert (task.constants.draw(0, "test", [3])["gravity"] == 9.8).all()
    assert (task.constants.draw(0, "val", range(99))["force"] >= 5).all()
    assert float((task.batch("train", range(4000)).force < 0).float().mean()) == pytest.approx(0.3, abs=0.03)
    with pytest.raises(UserError, match=r"task\.force=\[3\.0, 1\.0\]: give a range"):
        cartpole(force=[3.0, 1.0])


def test_references_of_the_physical_families() -> None:
    found = cartpole(horizon=500, force=[5.0, 20.0], half_length=[0.25, 1.0], swapped=0.5).references("val", range(30))
    assert found["bound"] == 1000
    assert found["controller"] > 990
    assert 20 < found["random"] < 80  # CartPole's known 22 an episode, a little more with weak pushes
    swung = pendulum(torque=[1.5, 3.0], swapped=0.5).references("val", range(30))
    assert swung["still"] < -2 * 1000
    assert -2 * 350 < swung["controller"] < -2 * 100


def test_mazes_are_trees_of_mutual_ways() -> None:
    task = maze(loops=0.0, size=6)
    neighbours = task.neighbours("train", range(50))
    weights = set()
    for cells in neighbours:
        ways = {(a, b) for a, sides in enumerate(cells.tolist()) for b in sides if a != b}
        assert ways == {(b, a) for a, b in ways}
        assert len(ways) == 2 * (36 - 1)  # and, as all can be reached below, a tree
        assert len(search(cells, 0)) == 36
        for a, step in product(range(36), range(4)):
            dx, dy = ((0, 1), (1, 0), (0, -1), (-1, 0))[step]
            if cells[a, step] != a:
                assert divmod(int(cells[a, step]), 6) == (a // 6 + dx, a % 6 + dy)
        weights.add(cells.tobytes())
    assert len(weights) == 50
    walls = 2 * 6 * 5
    more = (maze(loops=0.3, size=6).neighbours("train", range(200)) != np.arange(36)[:, None]).sum() / 2 / 200
    assert more == pytest.approx(35 + 0.3 * (walls - 35), abs=0.6)
    assert (
        maze(loops=1.0, size=2).neighbours("train", [0]) == [[1, 2, 0, 0], [1, 3, 0, 1], [3, 2, 2, 0], [3, 3, 2, 1]]
    ).all()


def search(cells: Any, start: int) -> dict[int, int]:
    """Steps from ``start`` to every cell that can be reached."""
    away, queue = {start: 0}, deque([start])
    while queue:
        at = queue.popleft()
        for to in cells[at].tolist():
            if to not in away:
                away[to] = away[at] + 1
                queue.append(to)
    return away


def test_the_layout_is_a_function_of_seed_split_and_index() -> None:
    task = maze()
    both = task.neighbours("train", [7, 8])
    assert (task.neighbours("train", [8]) == both[1:]).all()
    splits = [{x.tobytes() for x in task.neighbours(s, range(300))} for s in ("train", "val", "test")]  # type: ignore[arg-type]
    assert [len(s) for s in splits] == [300, 300, 300]
    assert not splits[0] & splits[1]
    assert not (splits[0] | splits[1]) & splits[2]
    few = maze(layouts=3)
    assert len({x.tobytes() for x in few.neighbours("train", range(30))}) == 3
    assert len({x.tobytes() for x in few.neighbours("val", range(30))}) == 30
    start, goal = few.ends("train", range(3000))
    assert (start != goal).all()
    assert len(set(zip(start.tolist(), goal.tolist(), strict=True))) > 500
    with pytest.raises(UserError, match=r"task\.size=1"):
        maze(size=1)


def test_a_maze_is_a_plain_loop() -> None:
    task = maze(size=4, horizon=25, episodes=1)
    env = task.batch("train", range(20))
    act = lambda transition: transition.observation.new_zeros(*transition.previous_reward.shape, 4)  # noqa: E731
    rollout = collect(env, task.spec, act, 3, 1, env.generator())
    neighbours, (start, goal) = task.neighbours("train", range(20)), task.ends("train", range(20))
    found = 0
    for t, e in product(range(20), range(3)):
        at, done = int(start[t]), False
        for s in range(25):
            assert bool(rollout.mask[t, e, s]) == (not done)
            if done:
                assert float(rollout.reward[t, e, s]) == 0
                continue
            x, y = divmod(at, 4)
            sides = []
            for step, dx, dy in product(range(4), (-1, 0, 1), (-1, 0, 1)):
                inside = 0 <= x + dx < 4 and 0 <= y + dy < 4
                other = (x + dx) * 4 + y + dy
                sides.append(float(inside and neighbours[t, other, step] != other))
            assert rollout.observation[t, e, s].tolist() == pytest.approx([*sides, 2 * x / 3 - 1, 2 * y / 3 - 1])
            at = int(neighbours[t, at, int(rollout.action[t, e, s])])
            done = at == goal[t]
            assert float(rollout.reward[t, e, s]) == pytest.approx(1 if done else -1 / 25)
            assert bool(rollout.terminated[t, e, s]) == done
        found += done
    assert 0 < found < 60
    assert maze(view=0, position=False).batch("val", [0]).observe(torch.tensor([[3]])).shape == (1, 1, 4)


def test_references_of_a_maze_are_shortest_ways_and_the_mean_of_wandering() -> None:
    task = maze(size=3, horizon=6, episodes=2, loops=0.2)
    neighbours, (start, goal) = task.neighbours("test", range(40)), task.ends("test", range(40))
    references = task.references("test", range(40))
    best = []
    for t in range(40):
        away = search(neighbours[t], int(start[t]))[int(goal[t])]
        best.append(1 - (away - 1) / 6 if away <= 6 else -1)
    assert references["oracle"] == pytest.approx(2 * np.mean(best))
    assert references["still"] == -2
    env = task.batch("test", range(40))
    act = lambda transition: transition.observation.new_zeros(*transition.previous_reward.shape, 4)  # noqa: E731
    returns = collect(env, task.spec, act, 500, 2, env.generator()).returns()
    assert float(returns.mean()) == pytest.approx(references["random"], abs=5 * float(returns.std()) / math.sqrt(20000))
