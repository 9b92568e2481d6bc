"""Ways to compute a step: in parts, captured, compiled; all give the same gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from metarun.algorithms.gradient.learner import GradientLearner
from metarun.config.build import construct
from metarun.config.catalogue import catalogue
from metarun.engine.capture import Captured, can_capture
from metarun.engine.plan import Plan
from metarun.engine.step import Engine, parts
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from tests.composed import composed
from tests.slow import slow_but

WAY, TASKS = 3, 4
SPEC = Spec("classification", "image", (1, 8, 8), WAY)
METHODS = [e.name for e in catalogue("algorithm") if str(e.section["_target_"]).endswith(".GradientLearner")]
OFTEN = ("maml", "mamlpp", "anil", "lowrank", "ml3", "warpgrad_steps", "protonet")
"""One of each way to build a step; the others are captured among the slow tests."""
CONV4 = {"_target_": "metarun.models.conv4.Conv4", "width": 4, "depth": 1, "downsample": "pool", "halvings": None,
         "reduce": "flatten", "norm_scale": True}  # fmt: skip

PERCEPTRON = {"_target_": "metarun.models.mlp.MLP", "hidden": [5], "activation": "relu", "batch_norm": False,
              "norm_scale": True, "init": "torch"}  # fmt: skip


def build(name: str, model: nn.Module | None = None, **changes: Any) -> GradientLearner:
    torch.manual_seed(0)
    section = composed("task=vision/folder", f"algorithm={name}")["algorithm"]
    section |= {"inner_steps": min(section["inner_steps"], 2), **changes}
    if "iterations" in section["outer"]:
        section["outer"] |= {"iterations": 2}  # conjugate gradients of iMAML
    return construct(section, model=model or construct(CONV4, spec=SPEC), spec=SPEC)


def batch(seed: int = 0) -> TaskBatch:
    noise = torch.Generator().manual_seed(seed)
    y = torch.arange(WAY).repeat_interleave(2).expand(TASKS, -1)
    return TaskBatch(*(Labelled(torch.randn(TASKS, 2 * WAY, 1, 8, 8, generator=noise), y, WAY) for _ in range(2)))


def gradient(learner: Any, plan: Plan, data: TaskBatch) -> list[torch.Tensor]:
    return found_by(Engine(learner), plan, data)


def found_by(engine: Engine, plan: Plan, data: TaskBatch) -> list[torch.Tensor]:
    engine.plan = plan
    torch.manual_seed(1)
    engine.gradient(data)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in engine.algorithm.parameters()]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "scratch"])  # which has no outer gradient
def test_a_network_without_replaced_layers_is_computed_without_kernels(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, data = build(name, construct(PERCEPTRON, spec=SPEC)), batch()
    assert not learner.has_replaced_layers
    other = copy.deepcopy(learner)
    other.has_replaced_layers = True
    with monkeypatch.context() as patched:
        patched.setattr("metarun.algorithms.gradient.inner_loop.TaskBatched", None)
        without = gradient(learner, Plan(), data)
    assert all(map(torch.equal, without, gradient(other, Plan(), data)))


def test_convolutions_and_layers_of_a_users_own_are_computed_by_kernels() -> None:
    class Mine(nn.Linear):
        pass

    assert build("maml").has_replaced_layers
    assert build("maml", nn.Sequential(nn.Flatten(), Mine(64, 5))).has_replaced_layers


@pytest.mark.parametrize("name", slow_but(OFTEN, [*METHODS, "protonet"]))
def test_a_captured_step_is_the_same_to_the_bit(name: str) -> None:
    if name == "protonet":
        section = composed("algorithm=protonet")["algorithm"] | {"norm": "transductive"}
        learner = construct(section, model=construct(CONV4, spec=SPEC), spec=SPEC)
    else:
        learner = build(name) if name == "maml" else build(name, inner_steps=1)  # each step takes a second to record
    assert (not can_capture(learner) or learner.optimizer is None) is (name in NOT_CAPTURED)
    if name in NOT_CAPTURED:
        return
    engine = Engine(learner)
    for seed in (0, 1):  # the second is a repetition on other data
        data = batch(seed)
        plain, captured = (found_by(engine, Plan(capture=c), data) for c in ("none", "graph"))  # type: ignore[arg-type]
        assert all(torch.equal(a, b) for a, b in zip(plain, captured, strict=True))
    assert [type(c) for c in engine.recordings.values()] == [Captured]
    engine.meta_step(data, 0)  # parameters change, the recording stays right
    plain, captured = (found_by(engine, Plan(capture=c), data) for c in ("none", "graph"))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(plain, captured, strict=True))


def test_a_captured_step_moves_running_statistics_as_the_step_itself_does() -> None:
    section = composed("algorithm=protonet")["algorithm"]
    moved = []
    for capture in ("none", "graph"):
        torch.manual_seed(0)
        learner = construct(section, model=construct(CONV4, spec=SPEC), spec=SPEC)
        for seed in (0, 1):
            gradient(learner, Plan(capture=capture), batch(seed))  # type: ignore[arg-type]
            moved.append(learner.model.blocks[0].norm.running_mean.clone())
    assert torch.equal(moved[0], moved[2])
    assert torch.equal(moved[1], moved[3])
    assert not torch.equal(moved[0], moved[1])


NOT_CAPTURED = {"reptile", "scratch", "es", "pes", "l2l", "l2l_mlp"}
"""Carry something from task to task or from step to step; or learn nothing."""


FRESH = {"scratch", "es", "pes", "l2l", "l2l_mlp", "ml3"}
"""Start at random: where a part's tasks start depends on how the meta-batch is parted."""
PARTED = sorted({*METHODS} - FRESH)


@pytest.mark.parametrize("name", slow_but(("cavia", "imaml", "maml", "mamlpp", "reptile", "warpgrad"), PARTED))
def test_parts_of_the_meta_batch_add_up(name: str) -> None:
    learner, data = build(name).double(), batch().map(lambda t: t.double() if t.is_floating_point() else t)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        once, one, three, loop = (
            gradient(copy.deepcopy(learner), plan, data)
            for plan in (Plan(), Plan(chunk=1), Plan(chunk=3), Plan(batched=False, chunk=1))
        )
    finally:
        torch.set_default_dtype(before)
    for other in (one, three, loop):
        for a, b in zip(once, other, strict=True):
            assert torch.allclose(a, b, rtol=1e-8, atol=1e-10 * max(1.0, float(a.abs().max())))
    shares = [share for _, share in parts([data], 3)]
    assert shares == [0.75, 0.25]


def test_metrics_are_means_over_all_tasks() -> None:
    learner, data = build("maml"), batch()
    whole = Engine(learner).gradient(data)
    for name, value in Engine(learner, Plan(chunk=3, capture="graph")).gradient(data).items():
        assert torch.allclose(value, whole[name], atol=1e-6)


def test_minibatches_of_a_captured_step_are_drawn_anew() -> None:
    learner, data = build("maml", inner_batch=2), batch()
    assert not torch.equal(gradient(learner, Plan(capture="graph"), data)[0], _seeded(learner, data, 2))
    assert torch.equal(gradient(learner, Plan(capture="graph"), data)[0], gradient(learner, Plan(), data)[0])


def _seeded(learner: Any, data: TaskBatch, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    Engine(learner).gradient(data)
    return next(learner.parameters()).grad.clone()


class Own(nn.Module):
    """A user's own module, which counts: a recording could not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(64, 8), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.tanh(self.linear(x.flatten(1))) / self.calls


def test_a_users_own_module_is_not_captured_unless_told() -> None:
    assert can_capture(build("maml"))
    assert not can_capture(build("maml", Own()))


def test_what_cannot_be_captured_runs_uncaptured(caplog: pytest.LogCaptureFixture) -> None:
    class ReadsBack(Own):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (2.0 if float(self.linear.weight.sum()) > 1e9 else 1.0)

    learner = build("fomaml", ReadsBack(), adapts={"_target_": "metarun.algorithms.gradient.adapts.ParameterSubset",
                                                   "part": "head", "norm": False})  # fmt: skip
    engine = Engine(learner, Plan(capture="graph"))
    assert all(v.isfinite() for v in engine.meta_step(batch(), 0).values())
    assert "runs uncaptured" in caplog.text


@pytest.mark.slow
def test_a_compiled_step_differs_by_rounding_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh())
    learner, data = build("maml", model), batch()
    for a, b in zip(*(gradient(learner, Plan(capture=c), data) for c in ("none", "compiled")), strict=True):  # type: ignore[arg-type]
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["maml", "anil", "metasgd"])
def test_a_cuda_graph_gives_the_same(name: str) -> None:
    learner = build(name).cuda()
    for seed in (0, 1):
        data = batch(seed).map(lambda t: t.cuda())
        for a, b in zip(*(gradient(learner, Plan(capture=c), data) for c in ("none", "graph")), strict=True):  # type: ignore[arg-type]
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
