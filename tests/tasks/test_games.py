"""MiniGrid, Atari, Procgen and Meta-World: what a task is, what is held out, and that batches repeat to the bit."""

from __future__ import annotations

import sys
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium", reason="needs gymnasium: pip install 'metarun[rl]'")

from metarun.algorithms.rl.collect import Rollout, Transition, collect
from metarun.cli import main
from metarun.errors import UserError
from metarun.tasks.rl.atari import Atari
from metarun.tasks.rl.gym import GymFamily
from metarun.tasks.rl.metaworld import MetaWorld
from metarun.tasks.rl.minigrid import ACTIONS, Layout, MiniGrid, encode_mission
from metarun.tasks.rl.procgen import HELD_OUT, Procgen
from metarun.types import SPLITS, Split


def played(family: GymFamily, split: Split, indices: list[int], num_envs: int = 1) -> Rollout:
    env = family.batch(split, indices)
    outputs = family.spec.output_size * (1 if family.spec.discrete_actions else 2)

    def act(transition: Transition) -> torch.Tensor:
        return transition.observation.new_zeros(*transition.previous_reward.shape, outputs)

    return collect(env, family.spec, act, num_envs, env.episodes, env.generator())


def assert_repeats(family: GymFamily) -> Rollout:
    """To the bit, in simulators that played other tasks in between."""
    first = played(family, "val", [3, 1])
    played(family, "train", [0])
    played(family, "val", [7, 1])
    again = played(family, "val", [3, 1])
    for name in ("observation", "action", "reward", "mask", "terminated"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    return first


def minigrid(env: str = "MiniGrid-Fetch-5x5-N2-v0", words: int = 0, held_out: Any = "layouts") -> MiniGrid:
    pytest.importorskip("minigrid", reason="needs minigrid: pip install 'metarun[games]'")
    return MiniGrid(0, env=env, words=words, actions=list(ACTIONS), held_out=held_out, horizon=8, episodes=2)


def test_a_grid_is_the_same_in_all_episodes_of_a_trial_and_held_out() -> None:
    family = minigrid()
    rollout = assert_repeats(family)
    assert torch.equal(rollout.observation[:, :, 0], rollout.observation[:, :, 8])
    assert not torch.equal(rollout.observation[0, :, 0], rollout.observation[1, :, 0])
    starts: dict[Split, set[bytes]] = {split: set() for split in SPLITS}
    for split, index in product(SPLITS, range(25)):
        simulator = family.make(family.parameters(split, index)).simulator
        simulator.reset(seed=family.parameters(split, index))
        grid = (simulator.grid.encode(), *simulator.agent_pos, simulator.agent_dir, simulator.mission)
        starts[split].add(repr([part.tolist() if hasattr(part, "tolist") else part for part in grid]).encode())
    assert all(len(each) > 15 for each in starts.values())
    assert not starts["train"] & starts["val"] | starts["train"] & starts["test"] | starts["val"] & starts["test"]


def test_what_an_agent_sees_of_a_grid() -> None:
    family = minigrid()
    layout = family.make(family.parameters("train", 2))
    vector, _ = layout.reset(seed=0)
    seen = layout.simulator.gen_obs()
    sizes = [49 * code.shape[0] for code in layout.codes]
    for i, part in enumerate(np.split(vector, np.cumsum([*sizes, 4]))[:3]):
        np.testing.assert_array_equal(part.reshape(7, 7, -1).argmax(-1), seen["image"][..., i])
        np.testing.assert_array_equal(part.reshape(7, 7, -1).sum(-1), 1)
    assert vector[sum(sizes) :].tolist() == np.eye(4)[seen["direction"]].tolist()
    few = MiniGrid(0, env=family.env, words=0, actions=["forward", "pickup"], held_out="layouts", horizon=8, episodes=2)
    chosen: Layout = few.make(few.parameters("train", 2))
    assert few.spec.output_size == 2
    done: list[int] = []
    chosen.simulator = SimpleNamespace(step=lambda a: done.append(a) or (seen, 0.5, True, False, {}))
    chosen.mission = np.zeros(0, np.float32)
    assert chosen.step(1)[4]["success"]
    assert done == [3]


def test_missions_are_told_in_words_and_held_out() -> None:
    family = minigrid("BabyAI-GoToObj-v0", words=6, held_out="missions")
    missions: dict[Split, set[str]] = {split: set() for split in SPLITS}
    for split, index in product(SPLITS, range(30)):
        layout = family.make(family.parameters(split, index))
        vector, _ = layout.reset(seed=0)
        said = layout.simulator.mission
        missions[split].add(said)
        np.testing.assert_array_equal(vector[-6 * 16 :], encode_mission(said, 6))
    assert all(missions.values())
    assert not missions["train"] & (missions["val"] | missions["test"])
    assert not missions["val"] & missions["test"]
    rows = encode_mission("go to the red ball", 6).reshape(6, 16)
    assert len(np.unique(rows[:5], axis=0)) == 5
    assert not rows[5].any()
    np.testing.assert_array_equal(rows[2], encode_mission("the", 1))
    with pytest.raises(UserError, match=r"task\.words=4: the mission 'go to the red ball' has 5 words"):
        encode_mission("go to the red ball", 4)
    with pytest.raises(UserError, match="did you mean 'MiniGrid-Empty-5x5-v0'"):
        minigrid("MiniGrid-Empty-5x5")


def atari(
    game: str = "freeway", observation: Any = "ram", rewards: Any = "score", sticky: float = 0.25, noops: int = 5
) -> Atari:
    pytest.importorskip("ale_py", reason="needs ale-py: pip install 'metarun[games]'")
    return Atari(
        0,
        game=game,
        observation=observation,
        rewards=rewards,
        skip=3,
        sticky=sticky,
        noops=noops,
        split_seed=0,
        horizon=5,
        episodes=2,
    )


def test_modes_of_a_cartridge_are_held_out() -> None:
    family = atari()
    rollout = assert_repeats(family)
    assert rollout.observation.shape == (2, 1, 10, 128)
    assert (rollout.observation >= 0).all()
    assert (rollout.observation <= 1).all()
    assert sorted(mode for modes in family.modes.values() for mode in modes) == list(range(8))
    assert {split: len(modes) for split, modes in family.modes.items()} == {"test": 2, "val": 2, "train": 4}
    drawn = {split: {family.parameters(split, i) for i in range(100)} for split in SPLITS}
    assert drawn["test"] == set(product(family.modes["test"], [0, 1]))
    for split in SPLITS:
        assert {mode for mode, _ in drawn[split]} == set(family.modes[split])
    with pytest.raises(UserError, match=r"task\.game=pong has 2 mode"):
        atari("pong")
    with pytest.raises(UserError, match="did you mean 'breakout'"):
        atari("brekout")


def test_actions_of_a_cartridge_are_held_and_stick() -> None:
    family = atari(sticky=0.0, noops=1)
    held = family.make((0, 0))
    plain = family.console(0, 0)
    held.reset(seed=0)
    plain.act(held.actions[0])
    for action in (1, 2, 1):
        seen, paid, *_ = held.step(action)
        assert paid == sum(plain.act(held.actions[action]) for _ in range(3))
        np.testing.assert_array_equal(seen, plain.getRAM())
    stuck = atari(sticky=1.0, noops=1).make((0, 0))
    idle = family.make((0, 0))
    stuck.reset(seed=0)
    idle.reset(seed=0)
    for _ in range(3):  # the first action is to rest, and sticks
        np.testing.assert_array_equal(stuck.step(1)[0], idle.step(0)[0])
    score, sign = (atari("galaxian", rewards=rewards, noops=1).make((1, 0)) for rewards in ("score", "sign"))
    score.reset(seed=1)
    sign.reset(seed=1)
    paid = np.array([[game.step(1)[1] for game in (score, sign)] for _ in range(120)])
    assert paid[:, 0].max() >= 30
    np.testing.assert_array_equal(np.sign(paid[:, 0]), paid[:, 1])
    turned, other = family.make((0, 0)), family.make((3, 1))
    turned.reset(seed=0)
    turned.step(1)
    family.turn(turned, (3, 1))
    for game in (turned, other):
        game.reset(seed=2)
    for _ in range(60):
        one, same = turned.step(1), other.step(1)
        np.testing.assert_array_equal(one[0], same[0])
        assert one[1:3] == same[1:3]
    screen = atari(observation="screen")
    assert screen.spec.input_shape == (1, 84, 84)
    assert screen.make((0, 0)).render().shape == (210, 160, 3)


def test_a_level_is_a_task() -> None:
    pytest.importorskip("procgen", reason="needs procgen2: pip install 'metarun[procgen]'")
    family = Procgen(
        0,
        games=["maze", "coinrun"],
        mode="easy",
        levels=3,
        backgrounds=False,
        shrink=4,
        repeat=2,
        horizon=6,
        episodes=2,
    )
    rollout = assert_repeats(family)
    assert family.spec.input_shape == (3, 16, 16)
    assert torch.equal(rollout.observation[:, :, 0], rollout.observation[:, :, 6])
    drawn = {split: {family.parameters(split, i) for i in range(60)} for split in SPLITS}
    assert drawn["train"] == set(product(["maze", "coinrun"], range(3)))
    levels = {split: {level for _, level in drawn[split]} for split in SPLITS}
    assert min(levels["val"] | levels["test"]) >= HELD_OUT
    assert not levels["val"] & levels["test"]
    level = family.make(("maze", 1))
    small, _ = level.reset(seed=0)
    frame = level.render()[::4, ::4].astype(float)
    np.testing.assert_allclose(small[2, 3], frame[8:12, 12:16].mean((0, 1)), atol=0.51)
    turned = family.make(("maze", 0))
    turned.reset(seed=0)
    family.turn(turned, ("maze", 1))
    np.testing.assert_array_equal(turned.reset(seed=0)[0], small)


def test_goals_of_meta_world_are_hidden_and_kept_apart() -> None:
    metaworld = pytest.importorskip("metaworld", reason="needs metaworld: pip install 'metarun[rl-metaworld]'")
    family = MetaWorld(0, benchmark="ML1", env="reach-v3", goals_seed=42, horizon=4, episodes=2)
    benchmark = metaworld.ML1("reach-v3", seed=42)
    goals = {name: {task.data for task in getattr(benchmark, f"{name}_tasks")} for name in ("train", "test")}
    ours = {split: {task.data for task in family.tasks[split]} for split in SPLITS}
    assert ours["test"] == goals["test"]
    assert ours["train"] | ours["val"] == goals["train"]
    assert (len(ours["train"]), len(ours["val"]), len(ours["test"])) == (40, 10, 50)
    assert not ours["train"] & ours["val"] | goals["train"] & goals["test"]
    rollout = assert_repeats(family)
    assert (rollout.observation[..., -3:] == 0).all()
    assert torch.equal(rollout.observation[:, :, 0], rollout.observation[:, :, 4])
    assert (rollout.reward > 0).any()
    # The pay is for the way to the task's own goal, not to one drawn anew.
    arm, task = family.make(family.tasks["test"][7]), family.tasks["test"][7]
    theirs = benchmark.test_classes["reach-v3"]()
    theirs.set_task(task)
    arm.reset(seed=5)
    theirs.reset()
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 4)):
        assert arm.step(action)[1] == theirs.step(action)[1]
    env = family.batch("test", [0])
    collect(env, family.spec, lambda p: p.observation.new_zeros(1, 2, 8), 2, 1, env.generator())
    assert env.outcome()["success"].shape == (1, 2)


@pytest.mark.parametrize(
    ("task", "missing", "said"),
    [
        ("minigrid", "minigrid", "task=rl/minigrid needs minigrid"),
        ("atari", "ale_py", "task=rl/atari needs ale-py"),
        ("procgen", "procgen", "task=rl/procgen needs procgen2"),
        ("metaworld", "metaworld", "task=rl/metaworld needs metaworld"),
        ("gym", "gymnasium", "task=rl/gym needs gymnasium"),
    ],
)
def test_a_missing_extra_is_one_line(
    task: str, missing: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert main([f"task=rl/{task}", *(["task.sampler=json"] if task == "gym" else [])]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert "pip install 'metarun[" in line
