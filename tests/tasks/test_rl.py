"""Baseline families: their dynamics against plain Python loops, their references, their purity."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarun.algorithms.rl.collect import Act, Rollout, Transition, collect
from metarun.algorithms.rl.distributions import sampling_noise
from metarun.errors import UserError
from metarun.tasks import rng
from metarun.tasks.episode import Spec
from metarun.tasks.rl.bandit import Bandit, bayes_optimum
from metarun.tasks.rl.base import Wrapper
from metarun.tasks.rl.gridnavi import GridNavi
from metarun.tasks.rl.mdp import TabularMDP
from metarun.tasks.rl.navigation import Navigation, Plane
from metarun.tasks.rng import Share, drawn
from metarun.types import Split

OPTIONS = list(product(["scaled", "clipped"], ["distance", "squared_distance"]))


def bandit(arms: int, pulls: int) -> Bandit:
    return Bandit(0, arms=arms, pulls=pulls, rewards="bernoulli")


def navigation(actions: str = "scaled", reward: str = "distance", horizon: int = 12, episodes: int = 1) -> Navigation:
    options: dict[str, Any] = {"actions": actions, "reward": reward, "test_goals": "drawn"}
    return Navigation(3, horizon=horizon, episodes=episodes, **options)


def toward_goal(task: Navigation, env: Plane) -> Act:
    """A noisy policy that walks to the goal, so that some episodes end early and some do not."""

    def act(transition: Transition) -> Tensor:
        mean = (env.goals - transition.observation).clamp(-0.1, 0.1)
        if task.actions == "scaled":
            mean = mean * 10
        log_std = torch.full_like(mean, math.log(1e-3))
        log_std[:, 0] = math.log(0.3)  # the first copy wanders
        return torch.cat([mean, log_std], -1)

    return act


@pytest.mark.parametrize(("actions", "reward"), OPTIONS)
def test_navigation_is_a_plain_loop(actions: str, reward: str) -> None:
    task = navigation(actions, reward)
    env = task.batch("train", [4, 9, 2])
    act = toward_goal(task, env)
    rollout = collect(env, task.spec, act, 4, 1, env.generator())
    noise = sampling_noise(task.spec, (12, 3, 4), env.device, env.generator())
    goals = task.goals("train", [4, 9, 2])
    early = 0
    for t, e in product(range(3), range(4)):
        x, done = np.zeros(2), False
        for s in range(12):
            assert bool(rollout.mask[t, e, s]) == (not done)
            np.testing.assert_allclose(rollout.observation[t, e, s], x, atol=1e-6)
            if done:
                assert rollout.reward[t, e, s] == 0
                assert not rollout.terminated[t, e, s]
                continue
            mean = np.clip(goals[t] - x, -0.1, 0.1) * (10 if actions == "scaled" else 1)
            action = mean + (0.3 if e == 0 else 1e-3) * noise[s, t, e].numpy()
            np.testing.assert_allclose(rollout.action[t, e, s], action, atol=1e-5)
            x = x + (np.clip(action, -1, 1) * 0.1 if actions == "scaled" else np.clip(action, -0.1, 0.1))
            distance = math.dist(x, goals[t])
            cost = distance if reward == "distance" else distance**2
            assert float(rollout.reward[t, e, s]) == pytest.approx(-cost, abs=1e-5)
            done = bool(np.all(np.abs(x - goals[t]) < 0.01))
            assert bool(rollout.terminated[t, e, s]) == done
        early += done
    assert 3 <= early < 12  # both endings were seen


def test_a_trial_goes_on_after_an_episode_and_tells_that_it_ended() -> None:
    task = navigation(horizon=8, episodes=3)
    env = task.batch("train", range(5))
    act, seen = toward_goal(task, env), []

    def watch(transition: Transition) -> Tensor:
        seen.append(transition)
        return act(transition)

    rollout = collect(env, task.spec, watch, 2, env.episodes, env.generator())
    assert rollout.reward.shape == (5, 2, 24)
    assert not seen[0].done.any()
    assert (seen[0].previous_reward == 0).all()
    assert (seen[0].previous_observation == 0).all()
    for step in range(1, 24):
        previous_over = ~rollout.mask[..., step - 1] | rollout.terminated[..., step - 1]
        assert torch.equal(seen[step].done, previous_over | torch.tensor(step % 8 == 0))
        assert torch.equal(seen[step].previous_observation, rollout.observation[:, :, step - 1])
        assert torch.equal(seen[step].previous_reward, rollout.reward[..., step - 1])
        assert torch.equal(seen[step].previous_action, rollout.action[..., step - 1, :])
    for start in (0, 8, 16):
        assert (rollout.observation[:, :, start] == 0).all()
        assert rollout.mask[:, :, start].all()
    last = rollout.episode(-1, 8)
    assert torch.equal(last.reward, rollout.reward[..., 16:])


@pytest.mark.parametrize("reward", ["distance", "squared_distance"])
def test_oracle_is_what_a_perfect_walker_gets(reward: str) -> None:
    task = navigation(reward=reward, horizon=20, episodes=2)
    env = task.batch("val", range(50))

    def act(transition: Transition) -> Tensor:
        mean = 10 * (env.goals - transition.observation)
        return torch.cat([mean, torch.full_like(mean, -20.0)], -1)

    walked = collect(env, task.spec, act, 1, 2, env.generator()).returns().mean()
    references = task.references("val", range(50))
    assert references["oracle"] == pytest.approx(float(walked), rel=1e-4)
    goals = task.goals("val", range(50))
    still = -40 * (np.square(goals).sum(1) ** (1 if reward == "squared_distance" else 0.5)).mean()
    assert references["still"] == pytest.approx(still)
    assert references["still"] < references["oracle"] < 0


def test_the_authors_test_goals() -> None:
    task = Navigation(0, actions="scaled", reward="distance", horizon=5, episodes=1, test_goals="authors")
    goals = task.goals("test", range(41))
    assert goals[0] == pytest.approx([0.417022 - 0.5, 0.72032449 - 0.5])  # the first draws of MT19937 seeded with 1
    assert (goals[40] == goals[0]).all()
    assert not (task.goals("val", [0]) == goals[0]).any()


@pytest.mark.parametrize("task", [navigation(), bandit(4, 6)])
def test_batches_are_pure_functions_of_seed_split_and_indices(task: Navigation | Bandit) -> None:
    def hidden(split: str, indices: list[int]) -> Tensor:
        env = task.batch(split, indices)  # type: ignore[arg-type]
        return env.goals if isinstance(task, Navigation) else env.pays  # type: ignore[union-attr]

    both = hidden("train", [7, 8])
    assert torch.equal(both[1:], hidden("train", [8]))
    assert torch.equal(both, hidden("train", [7, 8]))
    assert not torch.equal(both, hidden("val", [7, 8]))

    def played(indices: list[int]) -> Rollout:
        env = task.batch("train", indices)
        outputs = task.spec.output_size * (1 if task.spec.discrete_actions else 2)
        act = lambda transition: transition.observation.new_zeros(*transition.previous_reward.shape, outputs)  # noqa: E731
        return collect(env, task.spec, act, 2, env.episodes, env.generator())

    one, other, elsewhere = played([7, 8]), played([7, 8]), played([9, 8])
    assert torch.equal(one.reward, other.reward)
    assert torch.equal(one.action, other.action)
    assert not torch.equal(one.action, elsewhere.action)


def test_a_bandit_pays_as_often_as_its_arms_do() -> None:
    task = bandit(3, 2)
    env = task.batch("train", range(4))
    action = torch.arange(3).repeat(4, 20000)
    state = env.reset(60000, None)
    _, reward, ended = env.step(state, action, env.generator())
    assert ended.all()
    assert set(reward.unique().tolist()) == {0.0, 1.0}
    for arm in range(3):
        paid = reward[action == arm].view(4, -1).mean(1)
        np.testing.assert_allclose(paid, task.means("train", range(4))[:, arm], atol=4 * 0.5 / math.sqrt(20000))


def test_bandit_references() -> None:
    task = bandit(5, 10)
    references = task.references("test", range(20000))
    assert references["random"] == pytest.approx(5.0, abs=0.05)
    assert references["oracle"] == pytest.approx(10 * 5 / 6, abs=0.05)
    assert references["optimum"] == pytest.approx(6.6600, abs=5e-4)
    assert "optimum" not in bandit(5, 11).references("test", [0])
    # By hand, for two pulls of two arms: stay after a win (2/3), try the other (1/2) after a loss.
    assert bayes_optimum(2, 1) == pytest.approx(0.5)
    assert bayes_optimum(2, 2) == pytest.approx(0.5 + 0.5 * (2 / 3) + 0.5 * 0.5)
    assert bayes_optimum(1, 5) == pytest.approx(2.5)


def test_a_gaussian_bandit_pays_around_its_means() -> None:
    task = Bandit(0, arms=3, pulls=2, rewards="gaussian")
    env = task.batch("train", range(2))
    action = torch.arange(3).repeat(2, 20000)
    _, reward, _ = env.step(env.reset(60000, None), action, env.generator())
    for arm in range(3):
        paid = reward[action == arm].view(2, -1)
        np.testing.assert_allclose(paid.mean(1), task.means("train", range(2))[:, arm], atol=4 / math.sqrt(20000))
        np.testing.assert_allclose(paid.std(1), 1, atol=0.03)
    means = task.means("train", range(4000))
    assert (means.mean(), means.std()) == (pytest.approx(1, abs=0.04), pytest.approx(1, abs=0.04))


def mdp(states: int = 3, actions: int = 2, horizon: int = 3, episodes: int = 2) -> TabularMDP:
    return TabularMDP(1, states=states, actions=actions, horizon=horizon, episodes=episodes)


def test_a_decision_process_moves_and_pays_by_its_tables() -> None:
    task = mdp()
    env, (moves, pays) = task.batch("train", [5, 6]), task.tables("train", [5, 6])
    np.testing.assert_allclose(moves.sum(-1), 1)
    num_envs = 20000
    for s, a in product(range(3), range(2)):
        state = torch.full((2, num_envs), s)
        assert torch.equal(env.observe(state).argmax(-1), state)
        moved, reward, ended = env.step(state, torch.full_like(state, a), env.generator())
        assert not ended.any()
        np.testing.assert_allclose(reward.mean(1), pays[:, s, a], atol=4 / math.sqrt(num_envs))
        for n in range(3):
            np.testing.assert_allclose((moved == n).float().mean(1), moves[:, s, a, n], atol=2 / math.sqrt(num_envs))
    assert (env.reset(2, None) == 0).all()
    # Dirichlet(1, 1, 1): entries of mean 1/3 and variance 1/18.
    shares = task.tables("train", range(2000))[0]
    assert (shares.mean(), shares.var()) == (pytest.approx(1 / 3), pytest.approx(1 / 18, abs=2e-3))


def test_references_of_a_decision_process_are_those_of_the_best_and_the_mean_of_all_plans() -> None:
    task = mdp()
    (moves,), (pays,) = task.tables("test", [3])

    def worth(plan: tuple[int, ...], s: int, step: int, discount: float = 1.0) -> float:
        """Of a plan with an action for each (step, state)."""
        if step == 3:
            return 0.0
        a = plan[3 * step + s]
        after = sum(moves[s, a, n] * worth(plan, n, step + 1, discount) for n in range(3))
        return pays[s, a] + discount * after

    plans = list(product(range(2), repeat=9))
    values = [worth(plan, 0, 0) for plan in plans]
    references = task.references("test", [3])
    assert references["optimum"] == pytest.approx(2 * max(values))
    assert references["random"] == pytest.approx(2 * sum(values) / len(values))
    assert references["discounted_optimum"] == pytest.approx(2 * max(worth(plan, 0, 0, 0.99) for plan in plans))


def gridnavi(size: int = 5, horizon: int = 9, episodes: int = 1, observation: Any = "coordinates") -> GridNavi:
    return GridNavi(0, size=size, horizon=horizon, episodes=episodes, observation=observation)


def test_gridnavi_is_a_plain_loop() -> None:
    task = gridnavi(horizon=9, episodes=1)
    env = task.batch("train", range(40))
    assert len(task.possible) == 21
    assert {tuple(g) for g in task.goals("train", range(2000))} == {tuple(g) for g in task.possible}
    act = lambda transition: transition.observation.new_zeros(*transition.previous_reward.shape, 5)  # noqa: E731
    rollout = collect(env, task.spec, act, 2, 1, env.generator())
    reached = 0
    for t, e in product(range(40), range(2)):
        x, y = 0, 0
        for s in range(9):
            assert rollout.observation[t, e, s].tolist() == [x / 2 - 1, y / 2 - 1]
            dx, dy = {0: (0, 0), 1: (0, 1), 2: (1, 0), 3: (0, -1), 4: (-1, 0)}[int(rollout.action[t, e, s])]
            x, y = min(max(x + dx, 0), 4), min(max(y + dy, 0), 4)
            there = (x, y) == tuple(task.goals("train", [t])[0])
            assert float(rollout.reward[t, e, s]) == pytest.approx(1 if there else -0.1)
            reached += there
    assert rollout.mask.all()
    assert reached
    numbered = gridnavi(observation="number")
    state = torch.tensor([[[3, 1]]])
    seen = numbered.batch("train", [0]).observe(state)
    assert seen[0, 0].nonzero().tolist() == [[16]]
    assert torch.equal(numbered.cells(seen), task.cells(task.batch("train", [0]).observe(state)))
    # The mean way to a goal is 96 / 21 steps; each costs .1 but the last, which pays as does every one after it.
    everywhere = gridnavi(horizon=15, episodes=4)
    assert everywhere.references("test", range(20000))["oracle"] == pytest.approx(44.3, abs=0.2)
    with pytest.raises(UserError, match=r"task\.size=2"):
        gridnavi(size=2)


@pytest.mark.parametrize("spec", [bandit(5, 3).spec, navigation().spec], ids=["discrete", "continuous"])
def test_the_noise_of_a_task_does_not_depend_on_which_process_computes_it(spec: Spec) -> None:
    whole, device = range(12, 18), torch.device("cpu")
    every = rng.generator(device, 3, "train", whole)
    alone = [sampling_noise(spec, (4, 6, 2), device, every), drawn(torch.empty(6, 5), "uniform_", generator=every)]
    for rank in range(3):
        share = Share(whole, rank, 3)
        own = rng.generator(device, 3, "train", share)
        noise = sampling_noise(spec, (4, len(share), 2), device, own)
        assert torch.equal(noise, alone[0][:, rank::3])
        assert torch.equal(drawn(torch.empty(2, 5), "uniform_", generator=own), alone[1][rank::3])


def assert_distributed(values: Any, cdf: Callable[[float], float]) -> None:
    """By the test of Kolmogorov and Smirnov, at the .1 % level."""
    ordered = np.sort(np.asarray(values, dtype=float).ravel())
    expected, n = np.array([cdf(x) for x in ordered]), len(ordered)
    above, below = np.arange(1, n + 1) / n - expected, expected - np.arange(n) / n
    assert max(above.max(), below.max()) < 1.95 / math.sqrt(n)


def normal_cdf(mean: float) -> Callable[[float], float]:
    return lambda x: 0.5 * (1 + math.erf((x - mean) / math.sqrt(2)))


@pytest.mark.parametrize("split", ["train", "test"])
def test_tasks_are_drawn_as_published(split: Split) -> None:
    """Navigation: goals U[-.5, .5]^2. Bandits: U[0, 1] or N(1, 1). Decision processes: Dirichlet(1) and N(1, 1)."""
    goals = navigation().goals(split, range(3000))
    for axis in goals.T:
        assert_distributed(axis, lambda x: min(max(x + 0.5, 0), 1))
    assert abs(np.corrcoef(goals.T)[0, 1]) < 0.06
    assert_distributed(bandit(3, 1).means(split, range(1000)), lambda x: min(max(x, 0), 1))
    gaussian = Bandit(0, arms=3, pulls=1, rewards="gaussian")
    assert_distributed(gaussian.means(split, range(1000)), normal_cdf(1))
    process = TabularMDP(0, states=4, actions=2, horizon=2, episodes=1)
    moves, means = process.tables(split, range(400))
    assert_distributed(means, normal_cdf(1))
    np.testing.assert_allclose(moves.sum(-1), 1)
    assert_distributed(moves[..., 0], lambda x: 1 - (1 - x) ** 3)  # the marginal of Dirichlet(1, 1, 1, 1)
    assert_distributed(moves[..., :2].sum(-1), lambda x: 3 * x**2 - 2 * x**3)
    cells = GridNavi(0, size=3, horizon=2, episodes=1, observation="number").goals(split, range(4000))
    counts = np.unique(cells, axis=0, return_counts=True)[1]
    assert len(counts) == 5
    np.testing.assert_allclose(counts / 4000, 0.2, atol=0.03)


def test_rewards_of_a_decision_process_are_normal_around_their_means() -> None:
    process = TabularMDP(0, states=3, actions=2, horizon=2, episodes=1)
    env = process.batch("train", range(500))
    _, means = process.tables("train", range(500))
    action = torch.randint(2, (500, 4))
    state = torch.randint(3, (500, 4))
    moved, reward, _ = env.step(state, action, env.generator())
    rows = np.arange(500)[:, None]
    assert_distributed(reward.numpy() - means[rows, state, action], normal_cdf(0))
    assert not torch.equal(moved, state)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ((0, 1.0, False), "step returned float as reward; it must be [tasks, num_envs], here (3, 2)"),
        ((0, torch.zeros(3), torch.zeros(3, 2) > 0), "step returned a tensor of shape (3,) as reward"),
        (
            (0, torch.zeros(3, 2), torch.zeros(3, 2)),
            "as terminated; it must be [tasks, num_envs], here (3, 2) of type bool",
        ),
        (None, "step returned NoneType; it must be (state, reward, terminated)"),
        ((0, 1, 2, 3), "step returned tuple of 4; it must be (state, reward, terminated)"),
    ],
)
def test_what_a_tensor_environment_returns_wrongly_is_named(returned: Any, said: str) -> None:
    class Wrong(Wrapper):
        def step(self, *_: Any) -> Any:
            return returned

    task = navigation()
    env = Wrong(task.batch("val", range(3)))
    with pytest.raises(UserError, match=r"test_rl\..*Wrong\.") as error:
        collect(env, task.spec, lambda transition: torch.zeros(3, 2, 4), 2, 1, env.generator())
    assert said in str(error.value)
