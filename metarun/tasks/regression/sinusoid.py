"""Sinusoid regression of MAML: amplitude and phase vary between tasks."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from metarun import style
from metarun.errors import require
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.tasks.rng import uniforms
from metarun.tasks.to_device import to_device
from metarun.types import Positive, Rate, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import Learner


class Sinusoid(Task):
    """Regression y = A sin(f x - phase), A ~ U[.1, 5], phase ~ U[0, pi], x ~ U[-5, 5] (Finn et al. 2017, section 5.1).

    The splits are independent draws.

    Args:
        seed: Seed of the tasks.
        shot: Support points of a task.
        query: Query points of a task.
        test_shots: Further numbers of support points to test.
        frequency: Smallest and largest frequency f, uniform between them. MAML has f = 1; Meta-SGD (Li et al. 2017,
            arXiv:1707.09835) has U[.8, 1.2].
    """

    kind: ClassVar[str] = "regression"
    modality: ClassVar[str] = "vector"
    metric: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False
    independent_tasks: ClassVar[bool] = True

    def __init__(
        self,
        seed: int,
        *,
        shot: Positive,
        query: Positive,
        test_shots: Sequence[Positive],
        frequency: Sequence[Rate],
    ) -> None:
        require(
            len(frequency) == 2 and frequency[0] <= frequency[1],
            f"task.frequency={list(frequency)}: the smallest and the largest are needed, such as [0.8, 1.2]",
        )
        self.seed, self.test_shots = seed, tuple(test_shots)
        self.frequency = tuple(frequency)
        self.shape: EpisodeShape = EpisodeShape(0, shot, query)
        self.spec = Spec("regression", self.modality, (1,), 1)

    def curves(self, split: Split, indices: Sequence[int]) -> tuple[NDArray[np.float64], ...]:
        """Return amplitude, phase and frequency of each task, [T, 1] each."""
        u = uniforms(self.seed, split, indices, 2)
        low, high = self.frequency
        frequency = low + (high - low) * uniforms(self.seed, split, indices, 1, stream=2)
        return 0.1 + 4.9 * u[:, :1], pi * u[:, 1:], frequency

    def variants(self) -> dict[str, EpisodeShape | None]:
        others = (shot for shot in self.test_shots if shot != self.shape.shot)
        return {"": self.shape, **{f"_{shot}shot": self.shape.changed(shot=shot) for shot in others}}

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        shape = shape or self.shape
        amplitude, phase, frequency = self.curves(split, indices)
        x = 10 * uniforms(self.seed, split, indices, shape.shot + shape.query, stream=1) - 5
        values = np.stack([x, amplitude * np.sin(frequency * x - phase)], axis=-1)
        points = to_device(values, self.device, torch.get_default_dtype())
        support, query = points.split([shape.shot, shape.query], dim=1)
        return TaskBatch(*(Labelled(part[..., :1], part[..., 1:]) for part in (support, query)))

    def protocol(self) -> dict[str, Any]:
        varied = {} if self.frequency == (1.0, 1.0) else {"frequency": list(self.frequency)}
        return {"data": "sinusoid", "shot": self.shape.shot, "query": self.shape.query, **varied}

    def picture(self, learner: Learner) -> Figure:
        """Plot three test tasks: the true curve, the support points, and the fit before and after adaptation."""
        from matplotlib.figure import Figure

        indices = range(3)
        support = self.batch("test", indices).support
        x = torch.linspace(-5, 5, 200, device=self.device)
        with torch.no_grad():
            fits = [predict(x.expand(3, -1)[..., None])[..., 0].cpu() for predict in learner.adaptations(support)]
        amplitude, phase, frequency = self.curves("test", indices)
        grid = x.cpu().numpy()
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        for task, ax in enumerate(figure.subplots(1, 3, sharey=True)):
            true = amplitude[task] * np.sin(frequency[task] * grid - phase[task])
            ax.plot(grid, true, color=style.TRUTH, label="true curve")
            if len(fits) > 1:
                ax.plot(grid, fits[0][task], ":", color=style.EARLY, label="before adaptation")
            ax.plot(grid, fits[-1][task], color=style.LATE, label="after adaptation")
            at, values = support.x[task, :, 0].cpu(), support.y[task, :, 0].cpu()
            ax.plot(at, values, "^", color=style.GIVEN, ms=6, label="support")
            ax.set(xlabel="x", title=f"test task {task + 1}")
        figure.axes[0].set_ylabel("y")
        style.legend(figure, figure.axes[0])
        figure.suptitle("Sinusoids of the meta-test split, fitted from their support points")
        return figure
