"""Linear self-attention in float64 against sums by hand, and against gradient descent by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.algorithms.amortised.linear_attention import Reader
from metarun.config.build import construct
from metarun.models.linear import Linear
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from tests.composed import composed

pytestmark = pytest.mark.usefixtures("float64")


def learner(name: str, **changes: Any) -> Any:
    section = composed(f"algorithm={name}")["algorithm"] | changes
    return construct(section, model=Linear(bias=False), spec=Spec("regression", "vector", (3,), 2))


def batch() -> TaskBatch:
    return TaskBatch(*(Labelled(torch.randn(2, n, 3), torch.randn(2, n, 2)) for n in (5, 4)))


def descended(task: Labelled, rates: list[float]) -> Tensor:
    W = torch.zeros(3, 2, requires_grad=True)
    for rate in rates:
        loss = 0.5 * (task.x @ W - task.y).square().sum() / len(task.x)
        W = (W - rate * torch.autograd.grad(loss, W)[0]).detach().requires_grad_()
    return W.detach()


def test_attention_token_by_token() -> None:
    process, data = learner("linear_attention", layers=2, heads=2), batch()
    loss, total = process.outer_loss(data)[0], 0.0
    for (sx, sy), (qx, qy) in zip(data.support.tasks(), data.query.tasks(), strict=True):
        for x, y in zip(qx, qy, strict=True):
            tokens = [torch.cat(pair) for pair in zip(sx, sy, strict=True)] + [torch.cat([x, torch.zeros(2)])]
            for Q, P in zip(process.asked, process.out, strict=True):
                tokens = [
                    e + sum(P[h] @ sum(tokens[i] * (tokens[i] @ Q[h] @ e) for i in range(5)) / 5 for h in range(2))
                    for e in tokens
                ]
            total += (tokens[-1][3:] - y).square().mean().item() / 8
    assert loss.item() == pytest.approx(total, rel=1e-10)


def test_one_layer_can_take_a_step_of_gradient_descent() -> None:
    """Proposition 1: Q reads x, P writes y times the step size."""
    process, data = learner("linear_attention"), batch()
    with torch.no_grad():
        process.asked[0, 0] = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]))
        process.out[0, 0] = 0.7 * torch.diag(torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]))
    found = process.adapt(data.support)(data.query.x)
    for t, task in enumerate(data.support.tasks()):
        assert torch.allclose(found[t], data.query.x[t] @ descended(Labelled(*task), [0.7]), rtol=0, atol=1e-12)


def test_descent_by_autograd() -> None:
    process, data = learner("gradient_descent", steps=3), batch()
    with torch.no_grad():
        process.rates.copy_(torch.tensor([0.3, 0.5, 0.2]))
    found = process.adapt(data.support)(data.query.x)
    for t, task in enumerate(data.support.tasks()):
        expected = data.query.x[t] @ descended(Labelled(*task), [0.3, 0.5, 0.2])
        assert torch.allclose(found[t], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["linear_attention", "gradient_descent"])
def test_both_are_readers_whose_loss_is_the_error_of_queries(name: str) -> None:
    process, data = learner(name), batch()
    assert isinstance(process, Reader)
    error = (process.adapt(data.support)(data.query.x) - data.query.y).square().mean()
    assert process.outer_loss(data)[0].item() == pytest.approx(error.item(), rel=1e-12)
    assert process.evaluate(data)["mse"].mean().item() == pytest.approx(error.item(), rel=1e-12)
