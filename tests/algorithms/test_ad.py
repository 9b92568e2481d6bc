"""Algorithm distillation: what is recorded, what is read back, the loss step by step, and a context that slides."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarun.algorithms.rl.ad import AlgorithmDistillation, SlidingAgent
from metarun.algorithms.rl.advantage import masked_mean
from metarun.algorithms.rl.collect import Transition, collect
from metarun.config.build import construct
from metarun.errors import UserError
from metarun.tasks.rl.cartpole import CartPole
from metarun.tasks.rl.darkroom import DarkRoom
from metarun.tasks.rl.histories import Histories, HistoryEnv, path_of, write
from tests.composed import composed

ROOM = {"size": 3, "horizon": 5, "episodes": 4, "start": "centre", "reward": "each", "key": False,
        "observation": "coordinates", "held_out": 2, "order": "python"}  # fmt: skip


def room() -> DarkRoom:
    return DarkRoom(0, **ROOM)  # type: ignore[arg-type]


def ad(task: Any, model: str = "transformer_policy", **changes: Any) -> AlgorithmDistillation:
    torch.manual_seed(0)
    small = {"width": 8, "heads": 2} if model == "transformer_policy" else {"hidden": 8}
    policy = construct(composed(f"model={model}", "task=rl/bandit")["model"] | small, spec=task.spec)
    section = composed("algorithm=ad")["algorithm"] | {"every": 1} | changes
    return construct(section, model=policy, spec=task.spec)


class Seen:
    """An agent of random actions that keeps its inputs."""

    def __init__(self, actions: int) -> None:
        self.actions, self.inputs = actions, list[Transition]()

    def __call__(self, transition: Transition) -> Tensor:
        self.inputs.append(transition)
        return torch.zeros(*transition.previous_reward.shape, self.actions)


@pytest.mark.parametrize("family", ["room", "cartpole"])
def test_a_history_gives_back_what_the_agent_saw_and_did(family: str, tmp_path: Path) -> None:
    """Episodes of CartPole end early, so that environments wait for one another."""
    task = room() if family == "room" else construct(composed("task=rl/cartpole")["task"] | {"horizon": 30}, seed=0)
    env = HistoryEnv(task.batch("train", [3]), task.spec)
    agent = Seen(task.spec.output_size)
    rollout = collect(env, task.spec, agent, 6, 2, env.generator())
    write(tmp_path, 3, env.history(), task.spec, env.horizon)
    length = rollout.reward.shape[2]
    observation, action, reward, mask, done = Histories(tmp_path, task.spec).windows(1, length)
    (stream,) = [e for e in range(6) if torch.equal(action[1:, 0, 0].long(), rollout.action[0, e])]
    for step, seen in enumerate(agent.inputs):
        assert torch.allclose(observation[step + 1, 0], seen.observation[0, stream])
        assert torch.allclose(observation[step, 0], seen.previous_observation[0, stream])
        assert int(action[step, 0]) == int(seen.previous_action[0, stream])
        assert float(reward[step, 0]) == pytest.approx(float(seen.previous_reward[0, stream]))
        assert bool(done[step + 1, 0]) == bool(seen.done[0, stream])
    assert torch.equal(mask[1:, 0, 0] > 0, rollout.mask[0, stream])
    if family == "cartpole":
        assert isinstance(task, CartPole)
        assert not rollout.mask.all()


def test_noise_goes_on_from_rollout_to_rollout() -> None:
    task = room()
    env = HistoryEnv(task.batch("train", [0]), task.spec)
    for _ in range(2):
        collect(env, task.spec, Seen(5), 8, 1, env.generator())
    history = env.history()
    assert history.shape == (8, 10, 6)
    assert not np.array_equal(history[:, :5, 2], history[:, 5:, 2])
    assert history[:, :, 5].tolist() == [[0.0] * 5 + [1.0] + [0.0] * 4] * 8
    collect(env, task.spec, Seen(5), 3, 1, env.generator())
    with pytest.raises(UserError, match=r"\[3, 8\] environments"):
        env.history()


def stored(folder: Path, task: Any, streams: int = 3, steps: int = 20, files: int = 2) -> Path:
    for number in range(files):
        env = HistoryEnv(task.batch("train", [number]), task.spec)
        collect(env, task.spec, Seen(task.spec.output_size), streams, steps // task.horizon, env.generator())
        write(folder, number, env.history(), task.spec, env.horizon)
    return folder


@pytest.mark.parametrize("model", ["transformer_policy", "gru_policy"])
@pytest.mark.usefixtures("float64")
def test_the_loss_step_by_step(model: str, tmp_path: Path) -> None:
    """The likelihood of each action given the steps before it, by an agent that lives through the window again."""
    task = room()
    learner = ad(task, model, histories=str(stored(tmp_path, task)), context=7)
    windows = [part.double() for part in Histories(tmp_path, task.spec).windows(4, 7)]
    windows[3][4:6, 1] = 0  # steps that do not count
    observation, action, reward, mask, done = windows
    total, count = 0.0, 0
    for b in range(4):
        state: list[Any] = []
        for s in range(1, 8):
            previous = action[s - 1, b, 0].long()[None, None]
            flags = reward[s - 1, b].view(1, 1), done[s, b].view(1, 1) > 0
            transition = Transition(observation[s, b][None, None], observation[s - 1, b][None, None], previous, *flags)
            output, _, *state = learner.model(learner.model.encode(*transition).flatten(0, 1)[None], *state)
            if mask[s, b] > 0:
                total -= output[0, 0].log_softmax(-1)[int(action[s, b])].item()
                count += 1
    assert count == 26
    logp, counts = learner.likelihood(*windows)
    assert -masked_mean(logp, counts).item() == pytest.approx(total / count, rel=1e-10)


@pytest.mark.usefixtures("float64")
def test_the_loss_at_both_ends_of_the_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = room()
    learner = ad(task, histories=str(stored(tmp_path, task)), context=7)
    logp, mask = -torch.arange(7.0)[:, None].expand(7, 3), torch.ones(7, 3, dtype=torch.bool)
    weight = next(learner.parameters())
    monkeypatch.setattr(learner, "likelihood", lambda *_: (logp + 0 * weight.sum(), mask))
    found = learner.meta_step(task.batch("train", range(3)), 0)
    assert [float(found[name]) for name in ("loss", "first_loss", "last_loss")] == [3, 0.5, 5.5]


def test_one_in_several_episodes_is_read(tmp_path: Path) -> None:
    """Of 11 episodes of 5 steps, every third: from the first 4 of them, from the third 3."""
    task = room()
    rows = np.zeros((1, 55, 6), np.float32)
    rows[0, :, 0], rows[0, :, 1] = np.divmod(np.arange(55), 5)
    rows[0, 5::5, 5] = 1
    write(tmp_path, 0, rows, task.spec, task.horizon)
    histories, starts = Histories(tmp_path, task.spec, every=3), set()
    for _ in range(200):
        observation, action, *_, done = (part[:, 0] for part in histories.windows(1, 12))
        before = int(action[0]) == -1  # the window begins with the stream
        episode, step = observation[before:].unbind(-1)
        number = 5 * (episode // 3) + step
        assert torch.equal(number, number[0] + torch.arange(13 - before))
        assert len(set((episode % 3).tolist())) == 1
        begins = (observation[1:, 1] == 0).float()
        begins[0] *= not before
        assert torch.equal(done[1:, 0], begins)
        starts.add((int(episode[0]) % 3, int(number[0]) - before))
    assert starts == {(first, start) for first, last in ((0, 7), (1, 7), (2, 2)) for start in range(-1, last + 1)}
    with pytest.raises(UserError, match=r"55 steps, 10 of which algorithm\.every=4 keeps; algorithm\.context=12"):
        Histories(tmp_path, task.spec, every=4).windows(1, 12)
    # A folder of before the length of episodes was stored.
    text = (tmp_path / "histories.json").read_text()
    (tmp_path / "histories.json").write_text(text.replace(', "horizon": 5', ""))
    assert Histories(tmp_path, task.spec).windows(1, 12)[0].shape == (13, 1, 2)
    with pytest.raises(UserError, match=r"no length of episodes; collect again, or set algorithm\.every=1"):
        Histories(tmp_path, task.spec, every=2)


@pytest.mark.usefixtures("float64")
def test_a_full_context_is_read_anew_from_its_later_half() -> None:
    task, steps, context = room(), 13, 6
    learner = ad(task, context=context)
    agent, inputs = SlidingAgent(learner.model, context), []
    starts, start = [], 0
    for step in range(steps):
        if step - start == context:
            start = step - context // 2
        starts.append(start)
    assert starts == [0] * 6 + [3] * 3 + [6] * 3 + [9]
    for step in range(steps):
        shape = (2, 3)
        transition = Transition(torch.randn(*shape, 2), torch.randn(*shape, 2), torch.randint(5, shape),
                                torch.randn(shape), torch.zeros(shape, dtype=torch.bool))  # fmt: skip
        inputs.append(learner.model.encode(*transition).flatten(0, 1))
        got = agent(transition)
        expected = learner.model(torch.stack(inputs[starts[step] :]))[0][-1].view(*shape, -1)
        assert torch.allclose(got, expected, rtol=1e-9, atol=1e-12)
        assert len(agent.recent) <= context


def test_an_expert_that_improves_is_distilled(tmp_path: Path) -> None:
    """Streams that stay in the first half of their history and then move right: so does the distilled agent."""
    task = room()
    rows = np.zeros((4, 20, 6), np.float32)
    env = HistoryEnv(task.batch("train", [0]), task.spec)
    choices = iter([0] * 10 + [1] * 10)

    def act(transition: Transition) -> Tensor:
        return 99.0 * torch.eye(5)[next(choices)].expand(*transition.previous_reward.shape, 5)

    collect(env, task.spec, act, 4, 4, env.generator())
    rows = env.history()
    write(tmp_path, 0, rows, task.spec, task.horizon)
    learner = ad(task, histories=str(tmp_path), context=20, outer_lr=1e-2)
    before = copy.deepcopy(learner.state_dict())
    losses = [float(learner.meta_step(task.batch("train", range(4)), i)["loss"]) for i in range(60)]
    assert losses[-1] < 0.1 * losses[0]
    assert not all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    (rollout,) = learner.rollouts(task.batch("test", range(5)))
    actions = rollout.action.flatten(0, 1)
    assert actions.shape == (5, 20)
    assert float((actions[:, :10] == 0).float().mean()) > 0.8
    assert float((actions[:, 10:] == 1).float().mean()) > 0.8


def test_what_is_missing_or_damaged_is_said(tmp_path: Path) -> None:
    task = room()
    batch = task.batch("train", range(2))
    with pytest.raises(UserError, match=r"algorithm\.histories=null.*metarun collect"):
        ad(task).meta_step(batch, 0)
    assert ad(task).evaluate(batch)["return"].shape == (2, 1)
    with pytest.raises(UserError, match="no learning histories"):
        ad(task, histories=str(tmp_path / "none")).meta_step(batch, 0)
    folder = stored(tmp_path / "h", task)
    with pytest.raises(UserError, match=r"20 steps; algorithm\.context=21"):
        ad(task, histories=str(folder), context=21).meta_step(batch, 0)
    other = construct(composed("task=rl/cartpole")["task"], seed=0)
    with pytest.raises(UserError, match="histories with observation=2, and this task has observation=4"):
        ad(other, histories=str(folder)).meta_step(other.batch("train", range(2)), 0)
    path_of(folder, 0).write_bytes(b"\x93NUMPY nothing")
    path_of(folder, 1).unlink()
    with pytest.raises(UserError, match="damaged"):
        ad(task, histories=str(folder), context=4).meta_step(batch, 0)
    np.save(path_of(folder, 0), np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="damaged"):
        ad(task, histories=str(folder), context=4).meta_step(batch, 0)
    path_of(folder, 0).unlink()
    with pytest.raises(UserError, match="no history yet"):
        ad(task, histories=str(folder), context=4).meta_step(batch, 0)


def test_windows_are_read_from_disk(tmp_path: Path) -> None:
    """A folder of 40 MB is sampled by reading a few of its pages: no file is held, and none is read as a whole."""
    task = room()
    history = np.zeros((100, 10_000, 6), np.float32)
    history[:, :, 2] = np.arange(10_000) % 5
    write(tmp_path, 0, history, task.spec, task.horizon)
    found = Histories(tmp_path, task.spec)
    opened = found.opened(path_of(tmp_path, 0), 5, 6)
    assert isinstance(opened, np.memmap)
    _, action, *_ = found.windows(50, 5)
    steps = action[1:, :, 0]
    assert torch.equal((steps[0] + torch.arange(5)[:, None]) % 5, steps)
    assert not any(isinstance(value, np.ndarray) for value in vars(found).values())
