"""The outer steps of policies by hand: gradients that are shortened, TRPO's direction, length and line search."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarun.algorithms.rl.ppo import descend
from metarun.algorithms.rl.trpo import TRPOStep

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize(("limit", "moved"), [(0.5, 0.5), (100.0, 5.0)])
def test_gradients_are_shortened_to_their_limit(limit: float, moved: float) -> None:
    weight = nn.Parameter(torch.zeros(2))
    slope = torch.tensor([3.0, 4.0])

    def backward(_: Tensor) -> dict[str, Tensor]:
        (loss := slope @ weight).backward()
        return {"": loss.detach()}

    descend(backward, 1, torch.optim.SGD([weight], lr=1.0), epochs=1, minibatches=1, max_grad_norm=limit)
    torch.testing.assert_close(weight.detach(), -slope / 5 * moved, rtol=1e-5, atol=1e-6)


# TRPO where all is quadratic: the loss is g . x, the divergence x^T F x / 2, rounded down.

GRADIENT = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
METRIC = torch.diag(torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64))


def step(judge: Any = None, **changes: Any) -> tuple[Tensor, Tensor, Tensor]:
    keys = {"max_kl": 0.01, "cg_iterations": 10, "damping": 0.0, "backtracks": 10, "backtrack_ratio": 0.5, **changes}

    def quadratic(x: Tensor) -> tuple[Tensor, Tensor]:
        return GRADIENT @ x, (1 - 1e-9) * x @ METRIC @ x / 2

    trpo = TRPOStep(**keys)
    natural = trpo.natural_step(GRADIENT, lambda v: METRIC @ v)
    return trpo.line_search(torch.zeros(3), natural, torch.zeros(()), judge or quadratic)  # type: ignore[return-value]


def test_a_trust_region_step_ends_on_its_bound_along_the_natural_gradient() -> None:
    x, gain, kl = step()
    assert float(kl) == pytest.approx(0.01, rel=1e-4)
    torch.testing.assert_close(x / x.norm(), -(direction := torch.linalg.solve(METRIC, GRADIENT)) / direction.norm())
    assert float(gain) == pytest.approx(math.sqrt(2 * 0.01 * float(GRADIENT @ direction)), rel=1e-4)


def test_damping_turns_the_step() -> None:
    x, *_ = step(damping=0.5)
    direction = torch.linalg.solve(METRIC + 0.5 * torch.eye(3), GRADIENT)
    torch.testing.assert_close(x / x.norm(), -direction / direction.norm())
    assert float(x @ (METRIC + 0.5 * torch.eye(3)) @ x / 2) == pytest.approx(0.01, rel=1e-4)


def test_a_step_is_shortened_until_it_diverges_little_enough_and_gains() -> None:
    """The divergence is twice what the metric says, or the loss rises beyond a quarter of the step."""
    whole, *_ = step()

    def twice(x: Tensor) -> tuple[Tensor, Tensor]:
        return GRADIENT @ x, x @ METRIC @ x

    x, _, kl = step(twice)
    torch.testing.assert_close(x, whole / 2)
    assert float(kl) <= 0.01

    def bowl(x: Tensor) -> tuple[Tensor, Tensor]:
        far = x.norm() / whole.norm()
        return far - 0.3 if far > 0.3 else -far, (1 - 1e-9) * x @ METRIC @ x / 2

    x, gain, _ = step(bowl)
    torch.testing.assert_close(x, whole / 4)
    assert float(gain) == pytest.approx(0.25)

    def uphill(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.norm(), x @ METRIC @ x / 2

    x, gain, kl = step(uphill)
    assert (x == 0).all()
    assert gain == kl == 0
