"""Gradients in float32 on drawings, most of whose pixels are equal: as exact as torch's kernels for contiguous images.

Random images hide what these show: sums of many nearly equal values, one by one, lose three digits of the deviation.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.config.build import build
from metarun.config.compose import compose
from metarun.engine.plan import Plan
from metarun.engine.step import Engine
from metarun.models.norm import BatchNorm
from metarun.tasks.episode import TaskBatch

PLANS = [Plan(batched=False), Plan(batched=True)]


def made(task: str) -> tuple[SupervisedAlgorithm, TaskBatch]:
    """A prototypical network and a meta-batch of it, meta-trained 20-way."""
    words = [f"task={task}", "algorithm=protonet", "algorithm.train_way=20", "model=conv4", "runner.device=cpu"]
    run = build({**compose(words).config, "name": "x"})
    assert isinstance(run.algorithm, SupervisedAlgorithm)
    return run.algorithm, run.task.batch("train", [0], run.algorithm.train_shape(run.task.shape))


def gradient(algorithm: SupervisedAlgorithm, batch: TaskBatch, dtype: torch.dtype, plan: Plan) -> Tensor:
    learner = copy.deepcopy(algorithm).to(dtype)
    Engine(learner, plan).gradient(batch.map(partial(as_inputs, dtype=dtype)))
    return torch.cat([p.grad.flatten().double() for p in learner.parameters() if p.grad is not None])


def as_inputs(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Images of uint8 or of a float as values in 0..1; labels as they are."""
    if x.dtype == torch.uint8:
        return x.to(dtype) / 255
    return x.to(dtype) if x.is_floating_point() else x


def contiguous(self: BatchNorm, x: Tensor) -> Tensor:
    return F.batch_norm(x.contiguous(), None, None, self.weight, self.bias, True, self.momentum, self.eps)


@pytest.mark.parametrize("task", ["vision/glyphs", "vision/omniglot"])
def test_no_less_exact_than_contiguous_kernels(
    task: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if task == "vision/omniglot":
        data: Path = request.getfixturevalue("data_root")
        assert data.is_dir()
    algorithm, batch = made(task)
    exact = gradient(algorithm, batch, torch.float64, PLANS[0])

    def error(plan: Plan) -> float:
        return float((gradient(algorithm, batch, torch.float32, plan) - exact).norm() / exact.norm())

    ours = [error(plan) for plan in PLANS]
    monkeypatch.setattr(BatchNorm, "forward", contiguous)
    monkeypatch.setattr(BatchNorm, "can_fuse", lambda self, conv: False)
    reference = error(PLANS[0])
    assert max(ours) <= 2 * reference, f"{ours} against {reference:.1e}"
