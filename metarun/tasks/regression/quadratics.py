"""Quadratic functions to minimise, the first benchmark of learned optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sqrt
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from metarun.errors import require
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.tasks.rng import uniforms
from metarun.tasks.to_device import to_device
from metarun.types import Positive, Split


class Quadratics(Task):
    """Minimise f(theta) = |W theta - y|^2 with random W [shot, size] and y [shot] (Andrychowicz et al. 2016, section
    3.1).

    As a regression, the support set consists of the rows of W with the entries of y as targets, both scaled by
    sqrt(shot). The mean squared error of a linear model with weights theta and no bias is then f(theta). The query set
    is the support set, so the metric is the minimised value itself. The splits are independent draws.

    Args:
        seed: Seed of the tasks.
        shot: Number of rows of W.
        size: Number of parameters theta.
        distribution: Distribution of the entries: ``normal`` N(0, 1) as in the paper, or ``uniform`` U[0, 1] as in the
            authors' code.
    """

    kind: ClassVar[str] = "regression"
    modality: ClassVar[str] = "vector"
    metric: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False
    independent_tasks: ClassVar[bool] = True

    def __init__(
        self, seed: int, *, shot: Positive, size: Positive, distribution: Literal["normal", "uniform"]
    ) -> None:
        self.seed, self.distribution = seed, distribution
        self.shape: EpisodeShape = EpisodeShape(0, shot, 0)
        self.spec = Spec("regression", self.modality, (size,), 1)

    def check(self, split: Split, shape: EpisodeShape) -> None:
        require(shape.query == 0, f"algorithm.train_query={shape.query}: quadratics are evaluated on their support set")

    def entries(self, split: Split, indices: Sequence[int], shot: int) -> NDArray[np.float64]:
        """Return W and y side by side, [T, shot, size + 1]."""
        size = self.spec.input_shape[0] + 1
        u = uniforms(self.seed, split, indices, shot * size)
        if self.distribution == "normal":
            v = uniforms(self.seed, split, indices, shot * size, stream=1)
            u = np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * pi * v)  # Box and Muller
        return u.reshape(-1, shot, size)

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        shot = (shape or self.shape).shot
        values = sqrt(shot) * self.entries(split, indices, shot)
        rows = to_device(values, self.device, torch.get_default_dtype())
        support = Labelled(rows[..., :-1], rows[..., -1:])
        return TaskBatch(support, support)

    def protocol(self) -> dict[str, Any]:
        return {
            "data": "quadratics",
            "shot": self.shape.shot,
            "size": self.spec.input_shape[0],
            "distribution": self.distribution,
            "query": "the support set",
        }
