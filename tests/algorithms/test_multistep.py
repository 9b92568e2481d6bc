"""MAML++: losses after every step, normalisation of each step's own, orders of derivatives, against loops by hand."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_gradient import TASKS, apart, batch, body, outer_gradient, perturb
from test_gradient import build as build_of_maml
from torch import Tensor, nn

from metarun.algorithms.gradient.learner import GradientLearner
from metarun.algorithms.gradient.multistep import MultiStep
from metarun.engine.plan import Plan
from metarun.engine.step import Engine
from metarun.errors import UserError
from metarun.models.norm import BatchNorm
from metarun.tasks.episode import TaskBatch
from tests.slow import slow_but

build = partial(build_of_maml, inner_steps=3, test_steps=3)
G = "metarun.algorithms.gradient"
PART = {"_target_": f"{G}.adapts.ParameterSubset", "part": "all", "norm": False}
PHASES = {"outer__anneal_over": 50, "outer__first_order_for": 20}
ITERATIONS = {"start": 0, "first order, annealing": 10, "second order, annealing": 30, "floor": 49, "after": 50}


pytestmark = pytest.mark.usefixtures("float64")


def importance(iteration: int, over: int, steps: int) -> list[float]:
    """The weights as the authors' code steps through them."""
    if iteration >= over:
        return [0.0] * (steps - 1) + [1.0]
    weights = [1 / steps] * steps
    for k in range(steps - 1):
        weights[k] = max(weights[k] - iteration / steps / over, 0.03 / steps)
    weights[-1] = min(weights[-1] + iteration * (steps - 1) / steps / over, 1 - (steps - 1) * 0.03 / steps)
    return weights


def test_weights_are_the_authors_code_s() -> None:
    outer = MultiStep(anneal_over=40, first_order_for=0)
    for iteration in range(40):
        outer.weigh_for(iteration)
        assert outer.weights(5).tolist() == pytest.approx(importance(iteration, 40, 5), abs=1e-15)
        assert float(outer.weights(5).sum()) == pytest.approx(1)
    assert outer.capture_key(39) == (False, True)
    assert outer.capture_key(40) == (False, False)


def forward(norm: str, phi: list[Tensor], affine: list[Tensor], x: Tensor) -> Tensor:
    """The network of :func:`body` and its head, written out."""
    x = F.conv2d(x, phi[0], phi[1])
    if norm == "batch":
        x = F.batch_norm(x, None, None, *affine, True, 0.0, 1e-5)
    if norm == "layer":
        x = F.layer_norm(x, [3, 4, 4], *affine)
    return F.linear(torch.tanh(x).flatten(1), phi[2], phi[3])


def by_hand(learner: GradientLearner, data: TaskBatch, norm: str, weights: list[float], first: bool) -> dict[str, Any]:
    """One task after another, torch.autograd through all steps, set k of factors and offsets at step k and after it."""
    meta = {n: p for n, p in learner.named_parameters() if p.requires_grad}
    rates, steps = meta["rule.rates"], len(weights)
    sets = [meta[n] for n in meta if n.startswith("adapts.sets")]
    total = torch.zeros(())
    for (sx, sy), (qx, qy) in zip(data.support.tasks(), data.query.tasks(), strict=True):
        phi = [meta[f"net.{n}"] for n in ("0.0.weight", "0.0.bias", "1.weight", "1.bias")]
        for k in range(steps):
            loss = F.cross_entropy(forward(norm, phi, [s[k] for s in sets], sx), sy)
            gradients = torch.autograd.grad(loss, phi, create_graph=not first)
            phi = [p - rates[k, i] * g for i, (p, g) in enumerate(zip(phi, gradients, strict=True))]
            affine = [s[k] for s in sets]
            total = total + weights[k] * F.cross_entropy(forward(norm, phi, affine, qx), qy) / TASKS
    return dict(zip(meta, torch.autograd.grad(total, list(meta.values())), strict=True))


def learned(learner: GradientLearner, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient but for what is not meta-learned, which has none."""
    fixed = [n for n, p in learner.named_parameters() if not p.requires_grad]
    assert not any(gradient[n].any() for n in fixed)
    return {n: g for n, g in gradient.items() if n not in fixed}


@pytest.mark.parametrize("when", ITERATIONS)
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_outer_gradient_against_a_loop_unrolled_by_hand(norm: str, when: str) -> None:
    learner, data, iteration = perturb(build("mamlpp", body(norm), **PHASES)), batch(), ITERATIONS[when]
    assert len(learner.adapts.sets) == (0 if norm == "none" else 2)
    assert all(len(s) == 3 for s in learner.adapts.sets)
    learner.begin_iteration(iteration)
    assert learner.capture_key(iteration) == (iteration < 20, iteration < 50)
    expected = by_hand(learner, data, norm, importance(iteration, 50, 3), first=iteration < 20)
    assert all(g.flatten(1).norm(dim=1).min() > 0 for n, g in expected.items() if n.startswith(("adapts", "rule")))
    gradient = outer_gradient(learner, data)
    assert apart(learned(learner, gradient), expected) < 1e-12
    learner.batch_tasks = False
    assert apart(outer_gradient(learner, data), gradient) < 1e-12


def test_first_order_can_outlast_the_annealing() -> None:
    learner, data = perturb(build("mamlpp", body("batch"), outer__anneal_over=5, outer__first_order_for=9)), batch()
    for iteration in (5, 9):
        learner.begin_iteration(iteration)
        expected = by_hand(learner, data, "batch", [0.0, 0.0, 1.0], first=iteration < 9)
        assert apart(learned(learner, outer_gradient(learner, data)), expected) < 1e-12


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_without_its_additions_it_is_maml(norm: str, steps: int) -> None:
    """Its gradient by factors and offsets, of which the steps have one each, is in sum that by MAML's only ones."""
    data, model = batch(), body(norm)
    plain = {"rule": {"_target_": f"{G}.rules.SGD"}, "outer__anneal_over": 0, "inner_steps": steps}
    torch.manual_seed(0)
    ours = build("mamlpp", copy.deepcopy(model), **plain)
    torch.manual_seed(0)
    maml = build("maml", copy.deepcopy(model), inner_steps=steps)
    got, expected = learned(ours, outer_gradient(ours, data)), outer_gradient(maml, data)
    for set_, name in zip(ours.adapts.sets, ours.adapts.names, strict=True):
        assert set_.grad is not None
        got[f"net.{name}"] = set_.grad.sum(0)
    assert apart({n: got[n] for n in expected}, expected) < 1e-12


def test_uniform_weights_are_the_losses_along_the_way() -> None:
    """Which the truncated gradient, with nothing cut off, sums as well."""
    data, model = batch(), body("batch")
    learner = perturb(build("mamlpp", model))
    other = copy.deepcopy(learner)
    other.outer = build("l2l", body(), outer__unroll=None, outer__first_order=False).outer
    assert apart({n: 3 * g for n, g in outer_gradient(learner, data).items()}, outer_gradient(other, data)) < 1e-12


def test_steps_beyond_those_of_meta_training_take_the_last_ones_normalisation() -> None:
    learner, data = perturb(build("mamlpp", body("batch"))), batch()
    assert len(list(learner.adaptations(data.support, 0))) == 1
    adapted = list(learner.adaptations(data.support, 5))  # kept, and asked afterwards: each knows its step
    rates, sets = learner.rule.rates, list(learner.adapts.sets)
    for task, ((x, y), (query, _)) in enumerate(zip(data.support.tasks(), data.query.tasks(), strict=True)):
        phi = [learner.net.get_parameter(n) for n in learner.adapted_names]
        assert torch.allclose(adapted[0](data.query.x)[task], forward("batch", phi, [s[0] for s in sets], query))
        for k in range(5):
            affine = [s[min(k, 2)] for s in sets]
            gradients = torch.autograd.grad(F.cross_entropy(forward("batch", phi, affine, x), y), phi)
            phi = [p - rates[min(k, 2), i] * g for i, (p, g) in enumerate(zip(phi, gradients, strict=True))]
            assert torch.allclose(adapted[k + 1](data.query.x)[task], forward("batch", phi, affine, query))


@pytest.mark.parametrize("outer_optimizer", slow_but(["adam"], ["sgd", "adam"]))
def test_a_captured_step_is_the_same_to_the_bit_through_all_phases(outer_optimizer: str) -> None:
    """And is recorded once a phase, not once an iteration."""
    torch.set_default_dtype(torch.float32)
    changes = {"outer__anneal_over": 4, "outer__first_order_for": 2, "decay_over": 12, "inner_steps": 2}
    plain = perturb(build("mamlpp", body("batch"), outer_optimizer=outer_optimizer, **changes))
    captured = copy.deepcopy(plain)
    plain_engine, capturing = Engine(plain), Engine(captured, Plan(capture="graph"))
    for iteration in range(6):
        data = batch()
        metrics, again = (each.meta_step(data, iteration) for each in (plain_engine, capturing))
        assert all(torch.equal(metrics[name], again[name]) for name in metrics)
        for (name, p), q in zip(plain.named_parameters(), captured.parameters(), strict=True):
            assert torch.equal(p, q), (iteration, name)
    recordings = capturing.recordings
    assert [key[0] for key in recordings] == [(True, True), (False, True), (False, False)]
    assert all(r is not None for r in recordings.values())


def test_the_iteration_is_no_part_of_a_checkpoint() -> None:
    learner = build("mamlpp", body("batch"))
    learner.meta_step(batch(), 30)
    assert not any("iteration" in name for name in learner.state_dict())
    assert float(learner.outer.iteration) == 30


@pytest.mark.parametrize("part", ["head", "norm"])
def test_what_adapts_has_one_set(part: str) -> None:
    changes = {"adapts__adapts": PART | {"part": part}, "rule": {"_target_": f"{G}.rules.SGD"}}
    learner = perturb(build("mamlpp", nn.Sequential(nn.Conv2d(1, 3, 3), BatchNorm(3), nn.Flatten()), **changes))
    assert len(learner.adapts.sets) == (0 if part == "norm" else 2)
    assert all(v.isfinite() for v in learner.meta_step(batch(), 0).values())


def test_an_inner_loop_without_steps_is_refused() -> None:
    with pytest.raises(UserError, match="a loss after each inner step"):
        build("mamlpp", body(), inner_steps=0)
