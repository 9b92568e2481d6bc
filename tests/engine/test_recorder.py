"""RL's functions repeated from recordings: the same bits as without, on a device where launching them takes long."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarun.algorithms.rl.base import RLAlgorithm
from metarun.algorithms.rl.collect import advance
from metarun.config.build import build
from metarun.config.catalogue import catalogue
from metarun.config.compose import compose
from metarun.engine.plan import Plan
from metarun.engine.recorder import Recorder
from metarun.engine.tuning import RECORD_FROM, tuned
from metarun.tasks.rl.navigation import Plane
from metarun.training.experiment import Experiment
from tests.slow import slow_but

LEARNERS = {
    "rl2": ["task=rl/bandit", "task.pulls=4"],
    "rl2_trpo": ["task=rl/bandit", "task.pulls=3", "model.hidden=8", "algorithm.cg_iterations=2"],
    "dpt": ["task=rl/bandit", "task.pulls=4"],
    "varibad": ["task=rl/gridnavi", "model=belief_policy", "task.horizon=3", "task.episodes=2"],
    "maml_trpo": ["task=rl/navigation", "task.horizon=4", "algorithm.outer.cg_iterations=2"],
    "anil_trpo": ["task=rl/navigation", "task.horizon=4", "algorithm.outer.cg_iterations=2"],
    "promp": ["task=rl/navigation", "task.horizon=4"],
}


def run(name: str, capture: Any) -> Experiment:
    words = [*LEARNERS[name], f"algorithm={name}", "algorithm.rollouts=4", "runner.device=cpu"]
    experiment = build(compose(words).config)
    experiment.engine.plan = Plan(capture=capture)
    return experiment


@pytest.mark.parametrize("name", slow_but(("rl2", "varibad", "maml_trpo"), [*LEARNERS]))
def test_recorded_steps_are_the_same_to_the_bit(name: str) -> None:
    found = []
    for capture in ("none", "graph"):
        experiment = run(name, capture)
        for iteration in range(3):
            torch.manual_seed(iteration)
            batch = experiment.task.batch("train", range(2 * iteration, 2 * iteration + 2))
            metrics = experiment.engine.meta_step(batch, iteration)
        found.append([*metrics.values(), *experiment.algorithm.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    recordings = experiment.algorithm.recorder.recordings
    assert recordings
    assert None not in recordings.values()


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def of(self, x: Tensor, power: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.scale * x**power, {"x": x}

    def loss(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.scale * x).sum(), {"mean": x.mean()}


def test_results_are_those_of_the_function_on_other_values_and_parameters() -> None:
    module = Scaled()
    recorder = Recorder(module)
    for x, scale in ((torch.ones(3), 2.0), (torch.arange(3.0), -1.0)):
        module.scale.data.fill_(scale)
        value, rest = recorder(module.of, x, 2)
        assert torch.equal(value, scale * x**2)
        assert torch.equal(rest["x"], x)
        assert not value.requires_grad
    assert torch.equal(recorder(module.of, x, 3)[0], -(x**3))
    assert len(recorder.recordings) == 2  # a number is a constant of the recording


def test_a_gradient_is_added_to_that_which_is_there() -> None:
    module = Scaled()
    recorder = Recorder(module)
    for total in (3.0, 6.0):
        scalars = recorder.backward(module.loss, torch.ones(3))
        assert scalars is not None
        assert {name: float(value) for name, value in scalars.items()} == {"": 6.0, "mean": 1.0}
        assert float(module.scale.grad) == total  # type: ignore[arg-type]


def test_what_cannot_be_recorded_is_called(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(Scaled())
    assert recorder(lambda x, wrapped: wrapped.x + x, torch.ones(2), SimpleNamespace(x=1)).tolist() == [2.0, 2.0]
    assert not recorder.recordings

    def decides(x: Tensor) -> Tensor:
        return -x if x.sum() > 0 else x

    for _ in range(2):
        assert recorder(decides, torch.ones(2)).tolist() == [-1.0, -1.0]
        assert recorder.backward(decides, torch.ones(2)) is None
    assert caplog.text.count("decides could not be captured") == 2  # each once


def test_a_copy_of_an_algorithm_is_not_recorded() -> None:
    experiment = run("rl2", "graph")
    assert isinstance(experiment.algorithm, RLAlgorithm)
    assert experiment.algorithm.recorder is not None
    assert copy.deepcopy(experiment.algorithm).recorder is None


@pytest.mark.parametrize(
    ("device", "iterations", "above", "records"),
    [("cuda", RECORD_FROM, 30.0, True), ("cuda", RECORD_FROM - 1, 30.0, False), ("cuda", 1000, None, False),
     ("cpu", 1000, 30.0, False)],
)  # fmt: skip
def test_long_runs_on_a_gpu_are_recorded(device: str, iterations: int, above: float | None, records: bool) -> None:
    batch = SimpleNamespace(device=torch.device(device))
    found = tuned(run("rl2", "none").engine, batch, iterations, None, above)
    assert (found is not None and found.plan == Plan(capture="graph")) is records


CONTROL = [e.name for e in catalogue("task") if e.name.startswith("rl/")]
NATIVE = {"rl/bandit", "rl/cartpole", "rl/darkroom", "rl/doors", "rl/gridnavi", "rl/maze", "rl/mdp", "rl/navigation",
          "rl/pendulum", "rl/sparse_navigation"}  # fmt: skip
DRAWING = {"rl/bandit", "rl/mdp"}
"""Their rewards, and the states of the second, are drawn in each step."""


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_deterministic_environments_draw_and_change_nothing(name: str) -> None:
    assert name in CONTROL
    task = build(compose([f"task={name}", "algorithm=random", "runner.device=cpu"]).config).task
    env = task.batch("train", range(3))
    assert env.is_deterministic is (name not in DRAWING)
    if name in DRAWING:
        return
    held, before = copy.copy(vars(env)), torch.get_rng_state()
    state = env.reset(4, env.generator())
    size = task.spec.output_size
    action = torch.randint(size, (3, 4)) if task.spec.discrete_actions else torch.randn(3, 4, size)
    torch.set_rng_state(before)
    first, again = ((env.observe(state), *env.step(state, action, None)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(before, torch.get_rng_state())
    assert vars(env).keys() == held.keys()
    assert all(vars(env)[key] is value for key, value in held.items())


def test_a_subclass_says_itself_that_it_is_deterministic() -> None:
    class Windy(Plane):
        pass

    class Still(Plane):
        is_deterministic = True

    assert [each.is_deterministic for each in (Plane, Windy, Still)] == [True, False, True]


def test_recorded_environments_hold_the_goals_of_their_own_tasks() -> None:
    experiment = run("maml_trpo", "graph")
    recorder = experiment.algorithm.recorder
    for first in (0, 3):
        env = experiment.task.batch("train", range(first, first + 3))
        state, action = env.reset(4, env.generator()), torch.ones(3, 4, 2)
        mask = torch.ones(3, 4, dtype=torch.bool)
        found = recorder(advance, env, state, action, mask, None)
        assert all(map(torch.equal, found, advance(env, state, action, mask, None)))
    assert len(recorder.recordings) == 1
