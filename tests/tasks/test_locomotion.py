"""Robots: step by step those of Gymnasium, paid as published, and a function of their state alone."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarun.algorithms.rl.baselines import RandomActions
from metarun.algorithms.rl.collect import Transition, collect
from metarun.config.build import construct
from metarun.errors import UserError
from metarun.models.policies import MLPPolicy
from metarun.tasks.rl.locomotion import Body, Direction, Locomotion, Robots, Variation, Velocity
from tests.composed import composed

gymnasium = pytest.importorskip("gymnasium")
mujoco = pytest.importorskip("mujoco")

PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "half_cheetah": ("HalfCheetah-v5", {}),
    "ant": ("Ant-v5", {"include_cfrc_ext_in_observation": False}),
    "walker2d": ("Walker2d-v5", {}),
    "hopper": ("Hopper-v5", {}),
}


def locomotion(robot: Any = "half_cheetah", varies: Variation | None = None, **changed: Any) -> Locomotion:
    options: dict[str, Any] = {
        "control_cost": 0.05,
        "bonus": 0.0,
        "fall_ends": False,
        "horizon": 12,
        "episodes": 1,
        "threads": 1,
    }
    return Locomotion(3, robot=robot, varies=varies or Direction(), **{**options, **changed})


def played(env: Robots, num_envs: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """States, rewards and endings of random actions, some beyond their bounds, each [T, E, S, ...]."""
    noise = torch.Generator().manual_seed(7)
    state = env.reset(num_envs, noise)
    rows = []
    for _ in range(steps):
        action = 1.2 * torch.randn(env.tasks, num_envs, env.physics.actions, generator=noise)
        state, reward, over = env.step(state, action, noise)
        rows.append((state, reward, over))
    states, rewards, overs = (torch.stack(column, 2) for column in zip(*rows, strict=True))
    return states, rewards, overs


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("robot", PEERS)
def test_fifty_steps_are_those_of_gymnasium(robot: str) -> None:
    """To the bit where its contact solver, too, starts anew with every action; else to the solver's tolerance."""
    name, options = PEERS[robot]
    anew, warm = (gymnasium.make(name, **options).unwrapped for _ in range(2))
    task = locomotion(robot, fall_ends=True)
    env = task.batch("train", [0, 1])
    actions = np.random.default_rng(0).uniform(-1, 1, (50, anew.model.nu))
    if robot == "walker2d":
        actions[25:] = np.sign(actions[25])  # so that it falls in time
    state = env.reset(1, env.generator())
    for peer in (anew, warm):
        peer.reset(seed=0)
        peer.set_state(*(part[0, 0].numpy() for part in env.parts(state)))
    assert torch.equal(env.observe(state)[0, 0], torch.from_numpy(anew._get_obs()))
    assert task.spec.input_shape == anew.observation_space.shape
    before, ended = anew.data.qpos[0], 0
    for number, action in enumerate(actions):
        state, reward, over = env.step(state, torch.from_numpy(action).expand(2, 1, -1), None)
        anew.data.qacc_warmstart[:] = 0
        seen, _, terminated, _, info = anew.step(action)
        also_seen = warm.step(action)[0]
        assert np.array_equal(env.observe(state)[0, 0], seen)
        if number < 10:
            np.testing.assert_allclose(seen, also_seen, rtol=0, atol=1e-9)
        speed = (info["x_position"] - before) / anew.dt
        if robot != "ant":  # whose own speed is that of one physics step earlier
            assert speed == pytest.approx(info["x_velocity"], abs=1e-12)
        before = info["x_position"]
        assert float(reward[0]) == pytest.approx(speed - 0.05 * np.square(action).sum(), abs=1e-10)
        assert bool(over[0, 0]) == terminated
        ended += terminated
    assert (ended == 0) == (robot == "half_cheetah")


@pytest.mark.usefixtures("float64")
def test_what_tasks_pay_for() -> None:
    paid, states = {}, {}
    for name, varies in (("dir", Direction()), ("vel", Velocity(between=[0.5, 2.0])), ("body", Body(spread=0.0))):
        task = locomotion(varies=varies, bonus=0.3)
        env = task.batch("val", [4, 7])
        states[name], paid[name], over = played(env, 2, 6)
        assert not over.any()
    noise = torch.Generator().manual_seed(7)
    start = env.reset(2, noise)
    costs = [0.05 * (1.2 * torch.randn(2, 2, 6, generator=noise)).clamp(-1, 1).square().sum(-1) for _ in range(6)]
    x = torch.cat([start[:, :, None], states["dir"]], 2)[..., 1]
    speed, rest = x.diff(dim=-1) / 0.05, 0.3 - torch.stack(costs, -1)
    goals = locomotion(varies=Velocity(between=[0.5, 2.0])).goals("val", [4, 7])
    direction, wanted = torch.tensor([1.0, -1.0])[:, None, None], torch.from_numpy(goals)[:, None, None]
    torch.testing.assert_close(paid["dir"], direction * speed + rest)
    torch.testing.assert_close(paid["vel"], rest - (speed - wanted).abs())
    torch.testing.assert_close(paid["body"], speed + rest)
    assert torch.equal(states["dir"], states["vel"])
    assert 0.5 < goals.min() < goals.max() < 2
    many = locomotion(varies=Velocity(between=[0.5, 2.0])).goals("train", range(4000))
    assert many.mean() == pytest.approx(1.25, abs=0.03)
    assert not set(many) & set(locomotion(varies=Velocity(between=[0.5, 2.0])).goals("test", range(4000)))


@pytest.mark.parametrize("robot", ["half_cheetah", "hopper"])
def test_a_step_is_a_function_of_the_state(robot: str) -> None:
    """Not of how many threads there are, of the other tasks and environments, or of what was simulated before."""
    results = []
    for threads in (1, 3, 1):
        task = locomotion(robot, Body(spread=3.0), threads=threads)
        results.append(played(task.batch("test", range(5)), 7, 8)[0])
        again = played(task.batch("test", range(5)), 7, 8)[0]
        assert torch.equal(again, results[-1])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    states, action = results[0], torch.zeros(5, 7, task.physics.actions)
    whole = task.batch("test", range(5)).step(states[:, :, 3], action, None)[0]
    alone = task.batch("test", [2]).step(states[2:3, 4:5, 3], action[2:3, 4:5], None)[0]
    assert torch.equal(alone[0, 0], whole[2, 4])
    assert states[:, 0, -1].unique(dim=0).shape[0] == 5


def test_bodies_differ_as_published() -> None:
    task = locomotion("walker2d", Body(spread=3.0))
    models = task.batch("train", range(200)).models
    base = task.physics.model
    for name, bound in (("body_mass", 1.5), ("body_inertia", 1.5), ("geom_friction", 1.5), ("dof_damping", 1.3)):
        ours, theirs = np.stack([getattr(m, name) for m in models]), getattr(base, name)
        exponents = np.log(ours[:, theirs > 0] / theirs[theirs > 0]) / np.log(bound)
        assert 2.9 < exponents.max() <= 3
        assert -3 <= exponents.min() < -2.9
        assert exponents.std() == pytest.approx(3 / np.sqrt(3), rel=0.05)
        corners = np.corrcoef(exponents.T) - np.eye(exponents.shape[1])
        assert np.abs(corners).max() < 0.4  # every one has a factor of its own
    assert models[5].body_subtreemass[1] == pytest.approx(models[5].body_mass[1:].sum())
    assert base.body_mass[1] == pytest.approx(mujoco.MjModel.from_xml_path(_file("walker2d_v5.xml")).body_mass[1])
    other = locomotion("walker2d", Body(spread=3.0)).batch("train", [150])
    assert np.array_equal(other.models[0].body_mass, models[150].body_mass)


def _file(name: str) -> str:
    from metarun.tasks.rl.robots import description

    return str(description(name))


def test_a_simulation_that_diverges_ends_the_episode() -> None:
    env = locomotion().batch("train", [0, 1])
    state = env.reset(2, env.generator())
    state[0, 0, -3:] = 1e12
    moved, reward, over = env.step(state, torch.zeros(2, 2, 6), None)
    assert over.tolist() == [[True, False], [False, False]]
    assert torch.isfinite(moved).all()
    assert torch.isfinite(reward).all()


def test_fallen_walkers_stop_where_falling_ends_an_episode() -> None:
    def act(transition: Transition) -> Tensor:
        return transition.observation.new_zeros(*transition.previous_reward.shape, 12)

    for ends in (True, False):
        task = locomotion("walker2d", Body(spread=0.0), fall_ends=ends, horizon=60)
        env = task.batch("train", range(3))
        rollout = collect(env, task.spec, act, 2, 1, env.generator())
        assert bool(rollout.terminated.any(-1).all()) == ends
        assert bool(rollout.mask.all()) == (not ends)


def test_references_are_what_is_simulated() -> None:
    task = locomotion(varies=Velocity(between=[0.0, 2.0]), episodes=2, horizon=30)
    references = task.references("test", range(60))
    still = -2 * 30 * task.goals("test", range(60)).mean()
    assert references["still"] == pytest.approx(still, abs=3)  # the cheetah drops and rocks a little
    env = task.batch("test", range(60))
    (rollout,) = RandomActions(MLPPolicy(task.spec, filters=[], hidden=[4], activation="tanh", init_std=1.0), task.spec,
                               test_rollouts=1).rollouts(env)  # fmt: skip
    assert references["random"] == pytest.approx(float(rollout.returns().mean()), abs=4)
    assert references["random"] < references["still"]


def test_directions_are_two_tasks_and_say_so() -> None:
    task = locomotion()
    assert task.goals("test", range(4)).tolist() == [1, -1, 1, -1]
    assert not task.held_out_val
    assert task.protocol() | {"tasks": 2, "held_out_tasks": False} == task.protocol()
    assert locomotion(varies=Velocity(between=[0.0, 2.0])).held_out_val


def test_a_picture_is_drawn() -> None:
    for varies, panels in ((Direction(), 2), (Velocity(between=[0.0, 2.0]), 4)):
        task = locomotion(varies=varies, horizon=5)
        model = MLPPolicy(task.spec, filters=[], hidden=[4], activation="tanh", init_std=1.0)
        figure = task.picture(RandomActions(model, task.spec, test_rollouts=2))
        assert len(figure.axes) == panels


def test_what_cannot_be_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"task.varies.between=\[2.0, 1.0\]: give two numbers, the lower first"):
        Velocity(between=[2.0, 1.0])
    with pytest.raises(UserError, match=r"use runner.device=cpu"):
        locomotion().to(torch.device("mps"))
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(UserError, match=r"need mujoco: pip install 'metarun\[rl\]'$"):
        construct(composed("task=rl/half_cheetah_dir")["task"], seed=0)
