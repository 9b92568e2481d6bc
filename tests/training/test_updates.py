"""Gradient clipping, weight decay, and the gradient norm and learning rate that a row of metrics holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import directory, experiment
from torch import Tensor

from metarun.algorithms.base import Algorithm
from metarun.errors import UserError
from metarun.training.settings import Runner
from metarun.training.updates import OuterUpdates


class Two(Algorithm):
    """Two optimizers, each of its own parameters."""

    def __init__(self, optimizer: type[torch.optim.Optimizer], **keys: Any) -> None:
        super().__init__()
        self.model = torch.nn.Linear(2, 2)
        self.optimizer = optimizer([self.model.weight], lr=0.1, **keys)
        self.bias_optimizer = torch.optim.SGD([self.model.bias], lr=0.2)

    def meta_step(self, batch: Any, iteration: int) -> dict[str, Tensor]:
        self.zero_grad()
        loss = (3 * self.model(torch.tensor([1.0, float(iteration)])) ** 2).sum()
        loss.backward()
        for optimizer in self.optimizers().values():
            optimizer.step()
        return {"loss": loss.detach()}

    def evaluate(self, batch: Any) -> dict[str, Tensor]:
        raise NotImplementedError


def runner(**keys: Any) -> Runner:
    return replace(experiment().runner, **keys)


def steps(algorithm: Two, updates: OuterUpdates) -> None:
    with updates.active():
        for iteration in range(4):
            algorithm.meta_step(None, iteration)
    algorithm.meta_step(None, 4)  # the hooks are gone


def test_weight_decay_is_that_of_adamw() -> None:
    torch.manual_seed(0)
    ours = Two(torch.optim.Adam)
    torch.manual_seed(0)
    theirs = Two(torch.optim.AdamW, weight_decay=0.3)
    for optimizer in theirs.optimizers().values():
        optimizer.param_groups[0]["weight_decay"] = 0.3  # of SGD the same as decoupled: it has no momentum
    with OuterUpdates(ours, runner(weight_decay=0.3)).active():
        for iteration in range(4):
            ours.meta_step(None, iteration)
            theirs.meta_step(None, iteration)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(("limit", "clips"), [(1.5, True), (1e6, False)])
def test_each_optimizer_s_gradient_is_scaled_to_the_limit(limit: float, clips: bool) -> None:
    torch.manual_seed(0)
    algorithm = Two(torch.optim.SGD)
    updates = OuterUpdates(algorithm, runner(max_grad_norm=limit))
    before = [p.detach().clone() for p in algorithm.parameters()]
    updates.measuring = True
    with updates.active():
        algorithm.meta_step(None, 1)
    row = updates.row()
    for (name, lr), p, old in zip({"": 0.1, "bias_": 0.2}.items(), algorithm.parameters(), before, strict=True):
        assert row[f"{name}lr"] == lr
        norm = float((p.detach() - old).norm()) / lr
        assert norm == pytest.approx(limit if clips else row[f"{name}gradient_norm"], rel=1e-5)
        assert (row[f"{name}gradient_norm"] > limit) == clips
    assert set(updates.row()) == {"lr", "bias_lr"}  # the norms have been reported


def test_without_limits_steps_are_unchanged_and_norms_are_of_the_measured_steps() -> None:
    torch.manual_seed(0)
    ours = Two(torch.optim.Adam)
    torch.manual_seed(0)
    plain = Two(torch.optim.Adam)
    updates = OuterUpdates(ours, runner())
    steps(ours, updates)
    steps(plain, OuterUpdates(Two(torch.optim.Adam), runner()))
    assert all(torch.equal(mine, other) for mine, other in zip(ours.parameters(), plain.parameters(), strict=True))
    assert "gradient_norm" not in updates.row()


def test_a_row_holds_the_gradient_norm_and_the_learning_rate_of_its_iteration(tmp_path: Path) -> None:
    run = directory(tmp_path)
    given = experiment(["task=regression/sinusoid", "model.hidden=[4]", "algorithm.decay_over=4"], log_every=2)
    norms: list[float] = []
    apply_gradients = given.algorithm.apply_gradients  # type: ignore[operator]

    def watched() -> None:
        norms.append(float(torch.cat([p.grad.flatten() for p in given.algorithm.parameters()]).norm()))  # type: ignore[union-attr]
        apply_gradients()

    given.algorithm.apply_gradients = watched  # type: ignore[method-assign, assignment]
    given.run(run)
    rows = [row for row in run.rows() if "train/mse" in row]
    assert [row["iteration"] for row in rows] == [2, 3]
    assert [row["train/gradient_norm"] for row in rows] == pytest.approx(norms[1:])
    assert [row["train/lr"] for row in rows] == pytest.approx([0.75e-3, 0.5e-3])


def test_a_learner_without_an_optimizer_takes_no_weight_decay() -> None:
    with pytest.raises(UserError, match="has none"):
        experiment(["task=rl/bandit", "algorithm=maml_trpo", "model=mlp_policy"], weight_decay=0.1)
