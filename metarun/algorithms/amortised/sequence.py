"""Shared parts of learners that read a support set as a sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metarun.algorithms.supervised import TASK_LOSS
from metarun.tasks.episode import Labelled, Spec


def embedded(model: nn.Module, x: Tensor) -> Tensor:
    """Embed the inputs ``x`` [T, N, ...] of all tasks at once; return [T, N, features]."""
    return model(x.flatten(0, 1)).view(*x.shape[:2], -1)


def shuffled(examples: Labelled) -> Labelled:
    """Return the examples of each task in a random order. Task families sort them by class."""
    tasks, count = examples.y.shape[:2]
    order = torch.rand(tasks, count, device=examples.y.device).argsort(1)
    rows = torch.arange(tasks, device=order.device)[:, None]
    return examples.map(lambda values: values[rows, order])


def encode_targets(spec: Spec, y: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the labels as network inputs [T, N, outputs]: one-hot classes, or the regression targets."""
    if spec.kind == "regression":
        return y
    # F.one_hot reads its input back from the device to check it.
    return (y[..., None] == torch.arange(spec.output_size, device=y.device)).to(dtype)


def mean_loss(spec: Spec, prediction: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss of predictions [T, N, outputs] over tasks and examples."""
    return TASK_LOSS[spec.kind](prediction.flatten(0, 1), y.flatten(0, 1))
