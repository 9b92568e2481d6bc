"""A learned inner loss (ML3) against inner loops unrolled by hand, its network written out, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_gradient import LR, NORMS, SPEC, TASKS, WAY, apart, batch, body, build, outer_gradient, perturb
from torch import Tensor, nn
from torch.func import functional_call

from metarun.algorithms.gradient.learner import GradientLearner
from metarun.errors import UserError
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.tasks.regression.sinusoid import Sinusoid

VECTORS = Spec("regression", "vector", (2,), 3)
STARTS = ["task", "random"]
TRUNCATED = {"_target_": "metarun.algorithms.gradient.truncated.TruncatedBackprop", "unroll": None, "log": True}


pytestmark = pytest.mark.usefixtures("float64")


def perceptron(norm: str) -> nn.Module:
    """A body for vectors; ``norm`` none, or layer normalisation."""
    return nn.Sequential(nn.Linear(2, 5), nn.LayerNorm(5) if norm == "layer" else nn.Identity(), nn.Tanh())


def points() -> TaskBatch:
    return TaskBatch(*(Labelled(torch.randn(TASKS, 6, 2), torch.randn(TASKS, 6, 3)) for _ in range(2)))


def learned(spec: Spec, layer: str, start: str, **changes: Any) -> GradientLearner:
    """ML3 with a small loss network whose last layer is not zero, on a body with the normalisation ``layer``."""
    model = body(layer) if spec is SPEC else perceptron(layer)
    return perturb(build("ml3", model, spec, loss__hidden=[4, 3], loss__start=start, **changes))


def written_out(learner: GradientLearner, start: str, p: Tensor, x: Tensor, y: Tensor, inputs: bool) -> Tensor:
    """The learned loss of one task's predictions, example by example, from nothing but its weights."""
    weights = [*learner.loss.parameters()]
    total = torch.zeros(())
    for i in range(len(p)):
        if p.shape[1] == WAY and y.dtype == torch.int64:
            own, target = p[i].exp().sum().log() - p[i, y[i]], torch.eye(WAY)[y[i]]
        else:
            own, target = ((p[i] - y[i]) ** 2).mean(), y[i]
        h = torch.cat([p[i], target, x[i]] if inputs else [p[i], target])
        for k in (0, 2):
            z = weights[k] @ h + weights[k + 1]
            h = torch.where(z > 0, z, z.exp() - 1)
        out = weights[4] @ h + weights[5]
        total = total + (own * out[0].exp() + out[1] if start == "task" else (1 + out[0].exp()).log())
    return total / len(p)


def unrolled_by_hand(learner: GradientLearner, data: TaskBatch, start: str, inputs: bool = False) -> dict[str, Tensor]:
    """The outer gradient by torch.autograd through one task after another, all from the seed's random starts."""
    classes = learner.spec.kind == "classification"
    torch.manual_seed(5)
    starts = next(learner.trajectory(data.support, 0, None)).parameters
    meta = {n: p for n, p in learner.named_parameters() if p.requires_grad}
    total = torch.zeros(())
    for t, ((sx, sy), (qx, qy)) in enumerate(zip(data.support.tasks(), data.query.tasks(), strict=True)):
        phi = {n: p[t].detach().requires_grad_() for n, p in starts.items()}
        for _ in range(learner.inner_steps):
            loss = written_out(learner, start, functional_call(learner.net, phi, (sx,)), sx, sy, inputs)
            slopes = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {n: p - LR * g for (n, p), g in zip(phi.items(), slopes, strict=True)}
        answer = functional_call(learner.net, phi, (qx,))
        total = total + (F.cross_entropy(answer, qy) if classes else (answer - qy).square().mean()) / TASKS
    return dict(zip(meta, torch.autograd.grad(total, list(meta.values())), strict=True))


def gradient_at(learner: GradientLearner, data: TaskBatch) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return {n: g for n, g in outer_gradient(learner, data).items() if n.startswith("loss")}


def compared(learner: GradientLearner, data: TaskBatch, start: str, inputs: bool = False) -> None:
    """Batched and task by task, the engine's gradient is that unrolled by hand, and nothing but the loss is learned."""
    by_hand = unrolled_by_hand(learner, data, start, inputs)
    assert all(n.startswith("loss.network") for n in by_hand)
    # What is added to the loss whatever the prediction, or (for "random") the row not read, moves nothing.
    assert sum(bool(g.abs().max() > 1e-9) for g in by_hand.values()) >= 5
    assert learner.batchable
    assert apart(gradient_at(learner, data), by_hand) < 1e-11
    learner.batch_tasks = False
    assert apart(gradient_at(learner, data), by_hand) < 1e-11


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("norm", NORMS)
def test_classification_against_a_loop_unrolled_by_hand(norm: str, start: str) -> None:
    compared(learned(SPEC, norm, start), batch(), start)


@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_regression_against_a_loop_unrolled_by_hand(norm: str, start: str, inputs: bool) -> None:
    compared(learned(VECTORS, norm, start, loss__inputs=inputs), points(), start, inputs)


@pytest.mark.parametrize("norm", ["batch", "support"])
def test_outer_gradient_equals_finite_differences(norm: str) -> None:
    """Of the query loss through the whole inner loop, along random directions in the loss network's weights."""
    learner, data = learned(SPEC, "batch", "task", norm="support" if norm == "support" else "transductive"), batch()
    gradient = gradient_at(learner, data)
    weights = dict(learner.loss.named_parameters(prefix="loss"))
    for _ in range(2):
        direction, values = {n: torch.randn_like(p) for n, p in weights.items()}, []
        for eps in (1e-6, -1e-6):
            with torch.no_grad():
                for n, p in weights.items():
                    p += eps * direction[n]
                torch.manual_seed(5)
                *_, last = learner.trajectory(data.support, learner.inner_steps, None)
                values.append(float(learner.query_loss(last.parameters, last.dims, data)[0]))
                for n, p in weights.items():
                    p -= eps * direction[n]
        exact = sum(float((gradient[n] * direction[n]).sum()) for n in weights)
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(exact, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("spec", [SPEC, VECTORS], ids=["classification", "regression"])
def test_starts_as_the_tasks_own_loss(spec: Spec) -> None:
    model, data = (body(), batch()) if spec is SPEC else (perceptron("none"), points())
    curves = []
    for name, changes in (("ml3", {"loss__start": "task"}), ("scratch", {"adapts__std": None})):
        torch.manual_seed(5)  # the heads, too, are to be equal
        learner = build(name, model, spec, **changes)
        torch.manual_seed(5)
        curves.append([answer(data.query.x) for answer in learner.adaptations(data.support)])
    for ours, theirs in zip(*curves, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_inputs_that_are_no_vectors_are_refused() -> None:
    with pytest.raises(UserError, match=r"algorithm\.loss\.inputs=true"):
        build("ml3", body(), loss__inputs=True)


def test_first_order_has_no_gradient_and_is_refused() -> None:
    with pytest.raises(UserError, match=r"first_order"):
        build("ml3", body(), outer__first_order=True)
    with pytest.raises(UserError, match=r"first_order"):
        build("ml3", body(), outer={**TRUNCATED, "first_order": True})


@pytest.mark.slow
def test_learns_to_fit_sinusoids_faster_than_by_their_squared_error() -> None:
    """In seconds: better on new tasks, from the same starts, than descent of the squared error by the same steps.

    That it also beats the best step size takes minutes, and is what scripts/optimizers.py shows.
    """
    torch.set_default_dtype(torch.float32)
    task = Sinusoid(0, shot=20, query=10, test_shots=[], frequency=[1.0, 1.0])
    steps = {"spec": task.spec, "inner_lr": 0.03, "inner_steps": 10, "test_steps": 10}

    def built(name: str, **changes: Any) -> GradientLearner:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh())
        return build(name, model, **steps | changes)

    def errors(learner: GradientLearner) -> Tensor:
        """log10 of each test task's after the last step."""
        torch.manual_seed(0)
        return learner.evaluate(task.batch("test", range(300)))["mse"][:, -1].log10()

    descent = errors(built("scratch", adapts__std=None))
    learner = built("ml3", outer_lr=0.002, outer={**TRUNCATED, "first_order": False})
    for i in range(60):
        torch.manual_seed(i)
        learner.meta_step(task.batch("train", range(16 * i, 16 * i + 16)), i)
    gained = descent - errors(learner)
    assert float(gained.mean()) > max(0.05, 4 * float(gained.std()) / 300**0.5)
