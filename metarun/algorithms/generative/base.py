"""Base class of generative learners: they adapt to a few examples of a class, and are evaluated on new ones."""

from __future__ import annotations

from typing import ClassVar

import torch

from metarun.algorithms.base import Metrics
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.errors import require
from metarun.tasks.episode import Labelled, TaskBatch


class Generative(SupervisedAlgorithm):
    """The base class of learners that generate images of a class given ``shot`` images of it.

    Inputs and targets are swapped: x [T, N] are classes and y [T, N, C, H, W] their images, floats in 0..1. An adapted
    learner maps classes [T, N] to generated images [T, N, C, H, W], different ones at each call.
    ``spec.evaluate_samples`` computes their metrics.
    """

    kinds: ClassVar[tuple[str, ...]] = ("generation",)
    roles: ClassVar[tuple[str, ...]] = ("denoiser",)

    def evaluate(self, batch: TaskBatch) -> Metrics:
        self.eval()
        evaluate_samples = self.spec.evaluate_samples
        require(evaluate_samples is not None, "the task family cannot evaluate generated examples")
        assert evaluate_samples is not None
        with torch.no_grad(), self.computing():
            metrics = [evaluate_samples(learner, batch) for learner in self.adaptations(batch.support)]
        return {name: torch.stack([each[name] for each in metrics], dim=1) for name in metrics[0]}


def sets(support: Labelled) -> torch.Tensor:
    """Return the support images by class, [T * way, shot, C, H, W]; raises :class:`UserError` if the classes differ in
    size.
    """
    tasks, count = support.x.shape
    require(count % support.way == 0, f"{count} support images are not as many of each of {support.way} classes")
    order = support.x.argsort(stable=True, dim=1)
    rows = torch.arange(tasks, device=order.device)[:, None]
    return support.y[rows, order].unflatten(1, (support.way, -1)).flatten(0, 1)


def of_task(classes: torch.Tensor, way: int) -> torch.Tensor:
    """Return the index in :func:`sets` of each of ``classes`` [T, N], as [T * N]."""
    tasks = torch.arange(len(classes), device=classes.device)[:, None]
    return (tasks * way + classes).flatten()
