"""The outer step size, and that optimizers step by it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metarun.algorithms.outer_optimizer import Schedule


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_decaying_rate_starts_whole_is_halved_midway_and_ends_at_nothing(decay: str) -> None:
    schedule = Schedule(0.1, decay_over=100, decay=decay)  # type: ignore[arg-type]
    rates = [schedule.rate(i) for i in (0, 50, 100, 1000)]
    assert rates == pytest.approx([0.1, 0.05, 0.0, 0.0], abs=1e-15)
    assert schedule.rate(25) == pytest.approx(0.075 if decay == "linear" else 0.1 * (2 + 2**0.5) / 4)


def test_cosine_is_torchs() -> None:
    schedule, optimizer = Schedule(0.3, decay_over=7, decay="cosine"), torch.optim.SGD([nn.Parameter(torch.ones(()))])
    optimizer.param_groups[0]["lr"] = 0.3
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    for iteration in range(8):
        assert schedule.rate(iteration) == pytest.approx(torchs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        torchs.step()


def test_halving_and_decay_multiply_and_reach_the_optimizer() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(()))], lr=1.0)
    for iteration, rate in ((0, 0.4), (9, 0.4), (10, 0.2), (25, 0.1)):
        Schedule(0.4, halve_every=10).apply(optimizer, iteration)
        assert optimizer.param_groups[0]["lr"] == rate
    assert Schedule(0.4, halve_every=10, decay_over=40).rate(20) == pytest.approx(0.4 / 4 / 2)
    assert Schedule(0.4).rate(10**6) == 0.4
