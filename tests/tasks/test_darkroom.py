"""Dark rooms: what steps do, against an environment written out; references and test goals against the authors'."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from metarun.algorithms.rl.collect import Transition, collect
from metarun.config.build import construct
from metarun.errors import UserError
from metarun.tasks.rl.darkroom import DarkRoom
from metarun.tasks.rl.gridnavi import STEPS
from tests.composed import composed

DPT = {"size": 10, "start": "corner", "horizon": 100, "held_out": 20, "order": "numpy"}


def room(**changes: Any) -> DarkRoom:
    return construct({**composed("task=rl/darkroom")["task"], **changes}, seed=0)


class Plain:
    """One environment, a step at a time."""

    def __init__(self, task: DarkRoom, targets: list[list[int]], cell: tuple[int, int]) -> None:
        self.task, self.cell = task, cell
        self.left = [tuple(target) for target in targets]

    def step(self, action: int) -> float:
        steps = {0: (0, 0), 1: (0, 1), 2: (1, 0), 3: (0, -1), 4: (-1, 0)}
        x, y = (min(max(c + d, 0), self.task.size - 1) for c, d in zip(self.cell, steps[action], strict=True))
        self.cell = (x, y)
        if not self.left or self.left[0] != self.cell:
            return 0.0
        if len(self.left) > 1 or self.task.reward == "once":
            del self.left[0]
        return 1.0


@pytest.mark.parametrize(
    ("start", "reward", "key"), [("centre", "each", False), ("corner", "once", True), ("random", "each", True)]
)
def test_a_room_is_a_plain_loop(start: str, reward: str, key: bool) -> None:
    task = room(size=3, start=start, reward=reward, key=key, horizon=12, episodes=2)
    env = task.batch("train", range(30))
    act = lambda transition: transition.observation.new_zeros(*transition.previous_reward.shape, 5)  # noqa: E731
    rollout = collect(env, task.spec, act, 2, 2, env.generator())
    paid, starts = 0.0, set()
    for t, e, episode in product(range(30), range(2), range(2)):
        first = rollout.observation[t, e, 12 * episode]
        cell = tuple(int(c) + 1 for c in first)
        assert first.tolist() == [c - 1 for c in cell]
        plain = Plain(task, task.goals("train", [t])[0].tolist(), cell)
        starts.add(cell)
        for s in range(12 * episode, 12 * episode + 12):
            assert rollout.observation[t, e, s].tolist() == [c - 1 for c in plain.cell]
            reward_here = plain.step(int(rollout.action[t, e, s]))
            assert float(rollout.reward[t, e, s]) == reward_here
            paid += reward_here
    assert rollout.mask.all()
    assert paid > 30
    assert starts == {"centre": {(1, 1)}, "corner": {(0, 0)}, "random": set(product(range(3), repeat=2))}[start]


def test_the_goals_and_returns_of_both_published_rooms() -> None:
    """Goals as printed by the implementation of algorithm distillation; its returns by their distance from the centre,
    those of decision-pretrained transformers by the distance from the corner, as a mean of the 20 goals or of all."""
    task = room()
    goals = task.goals("test", range(8))[:, 0]
    assert goals.tolist() == [[4, 2], [5, 6], [6, 8], [7, 2], [3, 6], [0, 5], [5, 8], [5, 4]]
    found = task.references("test", range(16))
    assert found["oracle"] / 4 == pytest.approx(np.mean([21 - np.abs(g - 4).sum() for g in goals]))
    assert found["oracle"] / 4 == 17.25
    every = np.array(list(product(range(10), repeat=2)))
    np.random.RandomState(0).shuffle(every)
    expected = np.mean([min(101 - g.sum(), 100) for g in every[80:]])
    anywhere = room(**DPT | {"held_out": 0}).references("test", range(40000))["oracle"] / 4
    assert anywhere == pytest.approx(91.99, abs=0.1)
    task = room(**DPT)
    assert task.references("test", range(40))["oracle"] / 4 == pytest.approx(expected)
    assert task.goals("test", range(20))[:, 0].tolist() == every[80:].tolist()


@pytest.mark.parametrize("changes", [{}, {"key": True}, {"key": True, "reward": "once", "start": "random"}])
def test_references_are_what_such_players_get(changes: dict[str, Any]) -> None:
    task = room(size=4, horizon=9, episodes=1, **changes)
    env = task.batch("test", range(8))
    state = None

    def uniform(transition: Transition) -> torch.Tensor:
        return transition.observation.new_zeros(*transition.previous_reward.shape, 5)

    observe = env.observe

    def watched(now: torch.Tensor) -> torch.Tensor:
        nonlocal state
        state = now
        return observe(now)

    def oracle(transition: Transition) -> torch.Tensor:
        after = (state[..., None, :2] + torch.tensor(STEPS)).clamp(0, 3)
        away = (after - env.target(state)[..., None, :]).abs().sum(-1)
        return -1e3 * away.float()

    env.observe = watched
    found = task.references("test", range(8))
    for name, act in (("random", uniform), ("oracle", oracle)):
        returns = collect(env, task.spec, act, 4000, 1, env.generator()).returns().mean(0)
        assert float(returns.mean()) == pytest.approx(found[name], abs=3 * float(returns.std()) / 4000**0.5 + 1e-6)


def test_splits_share_no_goal_and_the_others_have_all_the_rest() -> None:
    task = room(size=3, held_out=2)
    seen = {s: {tuple(g[0]) for g in task.goals(s, range(500))} for s in ("train", "val", "test")}
    assert seen["train"] == seen["val"]
    assert len(seen["train"]) == 7
    assert len(seen["test"]) == 2
    assert not seen["train"] & seen["test"]
    everywhere = room(size=3, held_out=0)
    assert len({tuple(g[0]) for g in everywhere.goals("test", range(500))}) == 9


def test_the_observed_number_and_refusals() -> None:
    env = room(observation="number").batch("test", [0])
    assert env.observe(torch.tensor([[[3, 1, 0]]]))[0, 0].nonzero().tolist() == [[28]]
    with pytest.raises(UserError, match=r"task\.held_out=9: the room has 9 tasks"):
        room(size=3, held_out=9)
    with pytest.raises(UserError, match=r"task\.size=1: a room needs at least 2 cells"):
        room(size=1)
