"""Weights that stand in two places are moved, recorded and left behind as one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metarun.engine.plan import Plan
from tests.engine.test_step import batch, build, gradient


class Tied(nn.Module):
    """One weight matrix in two layers, which are one module (``whole``) or only share it."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 8)
        self.second = self.first if whole else nn.Linear(64, 64)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1))))))


@pytest.mark.parametrize("whole", [True, False], ids=["module", "weight"])
@pytest.mark.parametrize("plan", [Plan(), Plan(capture="graph")], ids=str)
def test_tied_weights(whole: bool, plan: Plan) -> None:
    learner, data = build("maml", Tied(whole)), batch()
    truth = gradient(learner, Plan(batched=False, chunk=1), data)
    parameters = list(learner.parameters())
    for a, b in zip(gradient(learner, plan, data), truth, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert all(a is b for a, b in zip(parameters, learner.parameters(), strict=True))
    assert learner.model.second.weight is learner.model.first.weight
