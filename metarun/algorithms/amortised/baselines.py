"""Baselines of in-context regression that are not meta-trained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metarun.algorithms.amortised.sequence import embedded
from metarun.algorithms.base import Metrics
from metarun.algorithms.supervised import Adapted
from metarun.algorithms.untrained import Untrained
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.types import Positive, Rate

Fit = Callable[[Tensor], Tensor]


class Baseline(Untrained):
    """The base class of baselines. It is evaluated after each number of examples, from 0 to all.

    A subclass implements :meth:`fit`. The model embeds inputs and is not trained.
    """

    kinds: ClassVar[tuple[str, ...]] = ("regression",)

    @abstractmethod
    def fit(self, x: Tensor, y: Tensor) -> Fit:
        """Fit to N >= 0 examples of each task.

        Args:
            x: Embedded inputs [T, N, F].
            y: Targets [T, N, D].

        Returns:
            A function of embedded inputs [T, M, F] to predictions [T, M, D].
        """

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        loss = (self.adapt(batch.support)(batch.query.x) - batch.query.y).square().mean()
        return loss, {"loss": loss.detach()}

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        x = embedded(self.model, support.x)
        for count in range(x.shape[1] + 1):
            fit = self.fit(x[:, :count], support.y[:, :count])
            yield lambda query, fit=fit: fit(embedded(self.model, query))  # type: ignore[misc]


class LeastSquares(Baseline):
    """Least squares without intercept. If several weights fit equally well, those of the smallest norm."""

    def fit(self, x: Tensor, y: Tensor) -> Fit:
        w = torch.linalg.pinv(x) @ y
        return lambda query: query @ w


class Ridge(Baseline):
    """Ridge regression without intercept: ``penalty`` |w|^2 is added to the sum of squared errors.

    If w ~ N(0, I) and ``penalty`` is the variance of the noise, this is the posterior mean, the optimal predictor.
    """

    def __init__(self, model: nn.Module, spec: Spec, *, penalty: Rate) -> None:
        super().__init__(model, spec)
        self.penalty = penalty

    def fit(self, x: Tensor, y: Tensor) -> Fit:
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        w = torch.linalg.solve(x.mT @ x + self.penalty * eye, x.mT @ y)
        return lambda query: query @ w

    def protocol(self) -> dict[str, Any]:
        return {"penalty": self.penalty}


class Lasso(Baseline):
    """Lasso without intercept: minimises |y - x w|^2 / 2N + ``penalty`` |w|_1, as in scikit-learn.

    Solved by ``iterations`` of FISTA (Beck & Teboulle 2009, section 4), for all tasks at once.
    """

    def __init__(self, model: nn.Module, spec: Spec, *, penalty: Rate, iterations: Positive) -> None:
        super().__init__(model, spec)
        self.penalty, self.iterations = penalty, iterations

    def fit(self, x: Tensor, y: Tensor) -> Fit:
        count = max(1, x.shape[1])
        gram, target = x.mT @ x / count, x.mT @ y / count
        # The trace bounds the largest eigenvalue; a power of it is nearer and as safe: tr(G^8)^(1/8).
        power = gram @ gram @ gram @ gram
        rate = 1 / (power.square().sum((1, 2), keepdim=True) ** (1 / 8)).clamp(min=1e-12)
        w = ahead = torch.zeros_like(target)
        momentum = 1.0
        for _ in range(self.iterations):
            moved = ahead - rate * (gram @ ahead - target)
            new = torch.sign(moved) * (moved.abs() - rate * self.penalty).clamp(min=0)
            following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = new + (momentum - 1) / following * (new - w)
            w, momentum = new, following
        return lambda query: query @ w

    def protocol(self) -> dict[str, Any]:
        return {"penalty": self.penalty}


class Neighbours(Baseline):
    """k nearest neighbours: the mean y of the ``neighbours`` nearest examples (or of all if fewer); 0 without any."""

    def __init__(self, model: nn.Module, spec: Spec, *, neighbours: Positive) -> None:
        super().__init__(model, spec)
        self.neighbours = neighbours

    def fit(self, x: Tensor, y: Tensor) -> Fit:
        count = min(self.neighbours, x.shape[1])
        rows = torch.arange(len(x), device=x.device)[:, None, None]

        def predict(query: Tensor) -> Tensor:
            if not count:
                return y.new_zeros(*query.shape[:2], y.shape[-1])
            # |q|^2 is the same for all examples.
            distance = x.square().sum(-1)[:, None] - 2 * query @ x.mT
            return y[rows, distance.topk(count, largest=False).indices].mean(2)

        return predict

    def protocol(self) -> dict[str, Any]:
        return {"neighbours": self.neighbours}


class Average(Baseline):
    """One gradient step: w is the mean of y x, a step on the squared error from 0, up to the step size."""

    def fit(self, x: Tensor, y: Tensor) -> Fit:
        w = x.mT @ y / max(1, x.shape[1])
        return lambda query: query @ w
