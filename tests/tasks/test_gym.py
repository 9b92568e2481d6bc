"""Gymnasium environments as tasks: the adaptor against a plain loop, whatever was played in between."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

gymnasium = pytest.importorskip("gymnasium", reason="needs gymnasium: pip install 'metarun[rl]'")

from metarun.algorithms.functional import call_with  # noqa: E402
from metarun.algorithms.rl.collect import Act, Rollout, collect  # noqa: E402
from metarun.errors import RunFailed, UserError  # noqa: E402
from metarun.models.belief import BeliefPolicy  # noqa: E402
from metarun.models.policies import GRUPolicy, MLPPolicy  # noqa: E402
from metarun.models.transformer_policy import TransformerPolicy  # noqa: E402
from metarun.tasks.episode import Spec  # noqa: E402
from metarun.tasks.rl.gym import Gym, GymFamily, Simulators  # noqa: E402
from metarun.tasks.rl.spaces import Interface, WrongValue  # noqa: E402
from metarun.tasks.rng import uniforms  # noqa: E402
from metarun.tracking.plots import write_film  # noqa: E402
from metarun.types import Split  # noqa: E402


class Walk:
    """A noisy walk to a place: ends there, or is cut off after ``limit`` steps. It counts the steps of its life."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(np.array([0.0]), np.array([4.0]))
    render_mode = "rgb_array"

    def __init__(self, goal: float, limit: int = 6) -> None:
        self.goal, self.limit, self.steps = goal, limit, 0

    def reset(self, seed: int) -> tuple[Any, dict[str, Any]]:
        self.rng = np.random.default_rng(seed)
        self.x, self.time = self.rng.normal(), 0
        return self.seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.time < self.limit, "stepped after its end"
        assert not (self.time and self.there), "stepped after its end"
        self.time, self.steps = self.time + 1, self.steps + 1
        self.x += float(action[0]) - 2 + 0.1 * self.rng.normal()
        self.there = abs(self.x - self.goal) < 0.5
        info = {"success": self.there}
        return self.seen(), -abs(self.x - self.goal), self.there, self.time == self.limit, info

    def seen(self) -> Any:
        return np.array([self.x, self.time], np.float32)

    def render(self) -> Any:
        return np.full((8, 6, 3), self.time, np.uint8)


class Walks(GymFamily):
    """Places to go to; simulators are used again if ``kept``."""

    def __init__(self, horizon: int = 8, episodes: int = 2, kept: bool = True) -> None:
        self.seed, self.horizon, self.episodes, self.kept = 3, horizon, episodes, kept
        self.look()

    def sample(self, rng: np.random.Generator, split: Split) -> float:
        return 2 * rng.normal()

    def make(self, parameters: float) -> Walk:
        return Walk(parameters)

    def like(self, parameters: float) -> str | None:
        return "walk" if self.kept else None

    def turn(self, simulator: Walk, parameters: float) -> None:
        simulator.goal = parameters


def still(outputs: int) -> Act:
    return lambda transition: transition.observation.new_zeros(*transition.previous_reward.shape, outputs)


def played(family: GymFamily, split: Split, indices: list[int], num_envs: int) -> tuple[Rollout, Simulators]:
    env = family.batch(split, indices)
    outputs = family.spec.output_size * (1 if family.spec.discrete_actions else 2)
    return collect(env, family.spec, still(outputs), num_envs, env.episodes, env.generator()), env


def same(one: Rollout, other: Rollout) -> bool:
    names = ("observation", "action", "reward", "mask", "terminated")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_a_batch_is_a_plain_loop_over_its_simulators() -> None:
    family = Walks()
    rollout, env = played(family, "val", [4, 9], 3)
    seeds = uniforms(3, "val", [4, 9], 6, stream=11)
    endings = {"there": 0, "cut": 0}
    for t, e, k in product(range(2), range(3), range(2)):
        walk = Walk(family.parameters("val", [4, 9][t]))
        seen, _ = walk.reset(seed=int(seeds[t, 3 * k + e] * 2**31))
        over, paid, solved = False, 0.0, False
        for s in range(8 * k, 8 * k + 8):
            assert bool(rollout.mask[t, e, s]) == (not over)
            np.testing.assert_array_equal(rollout.observation[t, e, s], seen)
            if over:
                assert rollout.reward[t, e, s] == 0
                assert not rollout.terminated[t, e, s]
                continue
            action = 2 + 2 * np.clip(rollout.action[t, e, s].numpy(), -1, 1)
            seen, paid, there, cut, _ = walk.step(action)
            assert float(rollout.reward[t, e, s]) == pytest.approx(paid, abs=1e-5)
            assert bool(rollout.terminated[t, e, s]) == there  # not where it was cut off
            over, solved = there or cut, solved or there
            endings["there"] += there
            endings["cut"] += cut and not there
        if k == 1:
            assert float(env.outcome()["success"][t, e]) == solved
    assert min(endings.values()) > 1


@pytest.mark.parametrize("kept", [True, False])
def test_what_was_played_before_changes_nothing(kept: bool) -> None:
    family = Walks(kept=kept)
    first, env = played(family, "train", [5, 6], 2)
    held, _ = played(family, "train", [5, 6], 2)  # while the first batch still has its simulators
    del env
    played(family, "test", [1, 2, 3], 4)
    again, env = played(family, "train", [5, 6], 2)
    assert same(first, again)
    assert same(first, held)
    assert any(walk.steps > 16 for row in env.rows for walk in row) == kept  # they have lived before
    assert not same(first, played(family, "val", [5, 6], 2)[0])
    # A task of the batch does not depend on the others, and the num_envs and episodes of one differ.
    np.testing.assert_array_equal(first.observation[1, :, 0], played(family, "train", [6], 2)[0].observation[0, :, 0])
    assert len(first.observation[..., 0].reshape(-1, 16)[:, ::8].unique()) == 8


spaces = gymnasium.spaces
TWO = spaces.Discrete(2, start=5)
FLOATS = np.finfo(np.float32)


def interface(seen: Any, acts: Any, channels: Any = None) -> Interface:
    return Interface(SimpleNamespace(observation_space=seen, action_space=acts), channels)


def test_observation_spaces() -> None:
    image = interface(spaces.Box(0, 255, (4, 6, 3), np.uint8), TWO)
    pixels = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    assert image.shape == (3, 4, 6)
    np.testing.assert_allclose(image.read(pixels).reshape(3, 4, 6)[1], pixels[..., 1] / 255, rtol=1e-6)
    assert interface(spaces.Box(0, 255, (4, 6), np.uint8), TWO).shape == (1, 4, 6)
    assert interface(spaces.Box(0, 1, (4, 6)), TWO).shape == (24,)
    assert interface(spaces.Discrete(4), TWO).read(2).tolist() == [0, 0, 1, 0]
    assert interface(spaces.MultiDiscrete([2, 3]), TWO).read(np.array([1, 0])).tolist() == [0, 1, 1, 0, 0]
    both = interface(spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(2)), TWO)
    assert both.read({"a": np.array([0.5, 1], np.float32), "b": 1}).tolist() == [0.5, 1, 0, 1]
    bytes_inside = interface(spaces.Tuple((spaces.Box(0, 255, (2,), np.uint8), spaces.Box(-np.inf, np.inf, (1,)))), TWO)
    assert bytes_inside.read((np.array([0, 255], np.uint8), np.array([-3e5]))).tolist() == [0, 1, -3e5]
    with pytest.raises(UserError, match="no fixed size"):
        interface(spaces.Sequence(spaces.Discrete(2)), TWO)
    with pytest.raises(UserError, match="observation_space=None; it must be a space"):
        interface(None, TWO)


def test_the_layout_of_an_image_is_told_where_its_shape_does_not_tell_it() -> None:
    assert interface(spaces.Box(0, 1, (4, 84, 84)), TWO).shape == (4, 84, 84)
    assert interface(spaces.Box(0, 1, (84, 84, 4)), TWO).shape == (4, 84, 84)
    assert interface(spaces.Box(0, 1, (84, 84, 4)), TWO, "first").shape == (84, 84, 4)
    for shape in ((12, 12, 6), (9, 8, 8)):
        space, pixels = spaces.Box(0, 1, shape), np.random.default_rng(0).random(shape)
        with pytest.raises(UserError, match=r"task\.channels=first or task\.channels=last"):
            interface(space, TWO)
        first, last = interface(space, TWO, "first"), interface(space, TWO, "last")
        assert first.shape == shape
        assert last.shape == (shape[2], *shape[:2])
        np.testing.assert_allclose(first.read(pixels).reshape(first.shape), pixels, rtol=1e-6)
        np.testing.assert_allclose(last.read(pixels).reshape(last.shape), pixels.transpose(2, 0, 1), rtol=1e-6)


@pytest.mark.parametrize(
    ("space", "pairs"),
    [
        (spaces.Box(0, 10, (1,)), {-1: 0, 0: 5, 1: 10, 3: 10, -9: 0}),
        (spaces.Box(0, np.inf, (1,)), {-0.67: 0.33, -1: 0, -5: 0, 7: 8}),
        (spaces.Box(-np.inf, 2, (1,)), {1: 2, 5: 2, -3: -2}),
        (spaces.Box(-np.inf, np.inf, (1,)), {3: 3, -30: -30}),
        (spaces.Box(FLOATS.min, FLOATS.max, (1,)), {0.5: 0.5, -2: -2}),
        (spaces.Box(FLOATS.min, 1, (1,)), {1: 1, 5: 1, -3: -3}),
        (spaces.Box(-1e12, 1e12, (1,), np.float64), {0.5: 0.5}),
        (spaces.Box(0, 4, (1,), np.int64), {-1: 0, -0.3: 1, 0.1: 2, 0.8: 4, 9: 4}),
        (spaces.Box(-(2**31), 2**31 - 1, (1,), np.int32), {2.7: 3, -0.6: -1}),
        (spaces.Box(0, 2**31 - 1, (1,), np.int32), {-1: 0, -7: 0, 3.6: 5}),
        (spaces.Box(0, 255, (1,), np.uint8), {-1: 0, 1: 255, 9: 255}),
        (spaces.Box(0.1, 0.3, (1,)), {-1: np.float32(0.1), 1: np.float32(0.3)}),
    ],
    ids=str,
)
def test_actions_are_inside_of_their_box(space: Any, pairs: dict[float, float]) -> None:
    arm = interface(spaces.Discrete(1), space)
    for said, done in pairs.items():
        action = arm.write(np.array([said], np.float32))
        assert action.tolist() == pytest.approx([done], rel=1e-6)
        assert space.contains(action)
    for said in 100 * np.random.default_rng(0).normal(size=200):
        assert space.contains(arm.write(np.array([said], np.float32)))


def test_actions_of_several_dimensions_and_parts() -> None:
    box = spaces.Box(np.array([[0.0, -np.inf]], np.float32), np.array([[10.0, np.inf]], np.float32))
    arm = interface(spaces.Discrete(1), box)
    assert arm.write(np.array([-1.0, 3.0])).tolist() == [[0, 3]]
    assert arm.write(np.array([7.0, -30.0])).tolist() == [[10, -30]]
    assert [interface(spaces.Discrete(4), TWO).write(a) for a in (0, 1)] == [5, 6]
    for space in (
        spaces.MultiDiscrete([2, 3], start=[1, -1]),
        spaces.MultiDiscrete([[2, 2], [2, 1]]),
        spaces.MultiBinary(3),
        spaces.MultiBinary((1, 2)),
    ):
        numbered = interface(spaces.Discrete(1), space)
        assert numbered.discrete
        done = [numbered.write(action) for action in range(numbered.actions)]
        assert all(space.contains(action) for action in done)
        assert len({str(action) for action in done}) == numbered.actions
    for space in (spaces.MultiBinary(20), spaces.Dict(a=TWO), spaces.Tuple((TWO, TWO))):
        with pytest.raises(UserError, match="wrap the environment"):
            interface(spaces.Discrete(2), space)


def test_all_tasks_have_the_same_spaces() -> None:
    class Odd(Walks):
        def make(self, parameters: float) -> Walk:
            walk = super().make(parameters)
            self.made = getattr(self, "made", 0) + 1
            if self.made > 1:
                setattr(walk, *self.change)
            return walk

        change: Any

    for attribute, space, what in (
        ("action_space", spaces.Discrete(3), r"Walk of a task has actions Discrete\(3\), not Box\(0\.0, 4\.0"),
        ("action_space", spaces.Box(0, 5, (1,)), r"actions Box\(0\.0, 5\.0"),
        ("observation_space", spaces.Box(-np.inf, np.inf, (3,)), r"observations Box\(-inf, inf, \(3,\)"),
    ):
        Odd.change = (attribute, space)
        with pytest.raises(UserError, match=what):
            played(Odd(kept=False), "train", [1, 2], 1)
    one, other = (spaces.Dict(a=TWO, b=spaces.Discrete(n)) for n in (2, 3))
    found = interface(one, TWO).difference(SimpleNamespace(observation_space=other, action_space=TWO))
    assert found == "observations['b'] Discrete(3), not Discrete(2)"
    assert interface(one, TWO).difference(SimpleNamespace(observation_space=one, action_space=TWO)) is None


SEEN = np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("method", "returned", "said"),
    [
        ("step", (SEEN, np.zeros(2), False, False, {}), "returned an array of shape (2,) and type float64 as reward"),
        ("step", (SEEN, np.zeros(1), False, False, {}), "it must be one finite number"),
        ("step", (SEEN, None, False, False, {}), "returned None as reward"),
        ("step", (SEEN, float("nan"), False, False, {}), "returned the float nan as reward"),
        ("step", (SEEN, 1e300, False, False, {}), "it must be one finite number"),
        ("step", (SEEN, "1", False, False, {}), "returned the str 1 as reward"),
        ("step", (SEEN, 0.0, False, {}), "returned a tuple of 4, as Gym had it before 0.26; it must return (observ"),
        ("step", None, "returned None; it must return (observation, reward, terminated, truncated, info)"),
        ("step", (SEEN, 0.0, None, False, {}), "returned None as terminated; it must be true or false"),
        ("step", (SEEN, 0.0, False, SEEN, {}), "as truncated; it must be true or false"),
        ("step", (SEEN, 0.0, False, False, None), "returned None as info; it must be a dict"),
        ("step", (SEEN[:1], 0.0, False, False, {}), "an observation of shape (1,) and type float32; it must be of sh"),
        ("step", (None, 0.0, False, False, {}), "an observation of None; it must be of shape (2,)"),
        ("step", (["a", "b"], 0.0, False, False, {}), "it must be of shape (2,) and type float32"),
        ("step", (SEEN + np.nan, 0.0, False, False, {}), "an observation with NaN or infinite values"),
        ("reset", SEEN, "returned an array of shape (2,) and type float32; it must return (observation, info)"),
        ("reset", (SEEN, None), "returned a tuple of 2; it must return (observation, info)"),
        ("reset", ([[0.0], [0.0, 1.0]], {}), "an observation of a list of 2; it must be an array of (2,)"),
    ],
)
def test_what_an_environment_returns_wrongly_is_named(method: str, returned: Any, said: str) -> None:
    class Wrong(Walk):
        pass

    class Wrongs(Walks):
        def make(self, parameters: float) -> Walk:
            return Wrong(parameters)

    setattr(Wrong, method, lambda self, *args, **kwargs: returned)
    place = r"test_gym\..*Wrong\." + method + r", task 7 of split 'val', episode 1"
    with pytest.raises(RunFailed, match=place + (", step 1: " if method == "step" else ": ")) as error:
        played(Wrongs(), "val", [7], 1)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_an_environment_raises_is_named_with_its_line() -> None:
    class Fragile(Walk):
        def step(self, action: Any) -> Any:
            return {}["fuel"] if self.time == 2 else super().step(action)

    class Fragiles(Walks):
        def make(self, parameters: float) -> Walk:
            return Fragile(parameters)

    said = r"Fragile\.step, task .*, step 3: raised KeyError: 'fuel' \(.*test_gym\.py, line "
    with pytest.raises(RunFailed, match=said):
        played(Fragiles(), "val", [1, 2, 3, 4], 3)
    env = Walks().batch("val", [0])
    with pytest.raises(RunFailed, match="the policy's actions became NaN or infinite at step 1"):
        env.step(env.reset(1, None), torch.full((1, 1, 1), torch.nan), None)


def test_bytes_are_bytes() -> None:
    image = interface(spaces.Box(0, 255, (3, 5, 6), np.uint8), TWO)
    for wrong, what in (
        (np.random.rand(3, 5, 6), "type float64; it must be of type uint8"),
        (np.full((3, 5, 6), 300), "values outside of 0..255"),
    ):
        with pytest.raises(WrongValue, match=what):
            image.read(wrong)


def test_a_film_shows_the_first_and_the_last_episode(tmp_path: Path) -> None:
    family = Walks()
    env = family.batch("test", [0])
    env.films = []
    rollout = collect(env, family.spec, still(2), 2, 2, env.generator())
    lengths = [int(rollout.episode(k, 8).mask[0, 0].sum()) for k in range(2)]
    assert [len(film) for film in env.films] == [n + 1 for n in lengths]
    assert [frame[0, 0, 0] for frame in env.films[0]] == list(range(lengths[0] + 1))
    frames = [np.full((8, 6, 3), 50 * n, np.uint8) for n in range(4)]
    write_film(frames, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 4
        assert film.size == (6, 8)


SPEC = Spec("control", "observation", (2, 5, 6), 3, discrete_actions=True)


def test_policies_of_tasks_read_images_as_each_would_alone() -> None:
    torch.manual_seed(0)
    with torch.random.fork_rng():
        torch.set_default_dtype(torch.float64)
        model = MLPPolicy(SPEC, filters=[3, 4], hidden=[5], activation="tanh", init_std=1.0)
        seen = torch.rand(2, 7, 60)
        parameters = {
            name: (p.detach() + 0.1 * torch.randn(2, *p.shape)).requires_grad_() for name, p in model.named_parameters()
        }
        torch.set_default_dtype(torch.float32)

    def second(output: Tensor, along: list[Tensor]) -> list[Tensor]:
        first = torch.autograd.grad(output.square().sum(), along, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), along))  # type: ignore[arg-type]

    together = call_with(parameters, model, seen)
    curved = second(together, list(parameters.values()))
    for t in range(2):
        alone = {name: p[t].detach().requires_grad_() for name, p in parameters.items()}
        output = torch.func.functional_call(model, alone, (seen[t],))
        torch.testing.assert_close(together[t], output)
        for whole, part in zip(curved, second(output, list(alone.values())), strict=True):
            torch.testing.assert_close(whole[t], part)


def test_policies_with_a_memory_read_images_and_nothing_of_them_twice() -> None:
    """Against torch's own convolutions, on observations between other percepts."""
    for model in (
        GRUPolicy(SPEC, filters=[3, 4], transitions=False, hidden=8, init_std=1.0),
        TransformerPolicy(SPEC, filters=[3, 4], transitions=False, width=8, layers=1, heads=2, init_std=1.0),
    ):
        inputs = torch.rand(4, 3, 60 + 5)
        x = inputs[..., :60].reshape(12, 2, 5, 6)
        for layer in model.eyes.layers:
            x = torch.nn.functional.conv2d(x, layer.weight, layer.bias, stride=2, padding=1).relu()
        read = torch.cat([x.reshape(4, 3, -1), inputs[..., 60:]], -1)
        torch.testing.assert_close(model.eyes(inputs), read)
        assert model(inputs)[0].shape == (4, 3, 3)
        assert model(inputs)[1].shape == (4, 3)
    with pytest.raises(UserError, match="observations are images"):
        MLPPolicy(SPEC, filters=[], hidden=[], activation="tanh", init_std=1.0)
    with pytest.raises(UserError, match="needs vectors"):
        BeliefPolicy(SPEC, latent=1, embedding=1, hidden=1, decoder=[1], policy=[1], init_std=1.0)


def test_a_wrong_sampler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "no_maker.py").write_text("def sample(rng, split): return 1\ndef makes(parameters): return 1\n")
    (tmp_path / "no_module.py").write_text("x = 1 / 0\n")
    (tmp_path / "no_sample.py").write_text("def sample(rng, split):\n    return [][1]\ndef make(n): pass\n")
    (tmp_path / "no_env.py").write_text("def sample(rng, split): return 1\ndef make(n): pass\n")
    for sampler, what in (
        ("not_there", "no module named 'not_there'"),
        ("no_maker", "did you mean 'makes'"),
        ("no_module", r"importing it raised ZeroDivisionError: division by zero \(.*no_module\.py, line 1\)"),
        ("no_sample", r"sample\(rng, split\) raised IndexError: .*no_sample\.py, line 2\)"),
        ("no_env", "None has observation_space=None; it must be a space"),
    ):
        with pytest.raises(UserError, match=what):
            Gym(0, sampler=sampler, horizon=3, episodes=1, channels=None)
