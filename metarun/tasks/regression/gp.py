"""Curves drawn from Gaussian processes, the benchmark of neural processes."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from metarun import style
from metarun.errors import require
from metarun.tasks.base import Task
from metarun.tasks.counts import shared_count
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.tasks.rng import normals, uniforms
from metarun.tasks.to_device import to_device
from metarun.types import NonNegative, Positive, Rate, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import Learner

Array = NDArray[np.float64]
Kernel = Literal["rbf", "matern52", "periodic", "weakly_periodic", "mixture", "sawtooth"]


class GaussianProcesses(Task):
    """Regression y ~ N(0, K + noise^2 I) at x ~ U[low, high] (Garnelo et al. 2018, arXiv:1807.01613, section 4.1).

    Each task draws its own length scale l, scale s and period p, each uniform in the given range. The authors'
    notebooks use l = .4, s = 1 (conditional neural processes) and l ~ U[.1, .6], s ~ U[.1, 1] (attentive ones), both
    with noise .02. The splits are independent draws.

    Args:
        seed: Seed of the tasks.
        kernel: ``rbf``: s^2 exp(-d^2 / 2 l^2). ``matern52``: s^2 (1 + r + r^2 / 3) exp(-r) with r = sqrt(5) d / l.
            ``periodic``: s^2 exp(-2 sin^2(pi d / p) / l^2). ``weakly_periodic``: s^2 exp(-d^2 / 2 l^2 - 2 sin^2(pi d /
            p)). ``mixture``: s^2 times the sum of exp(-d^2 / 2 l^2) over both ends l of ``length``. The last two are of
            Gordon et al. (2020, arXiv:1910.13556, appendix C.1), the mixture with noise. ``sawtooth`` is no Gaussian
            process but waves s ((x / p - c) mod 1) with c ~ U[0, 1], rising or falling. Their true posterior is not
            computed.
        length: Smallest and largest length scale l.
        scale: Smallest and largest scale s.
        period: Smallest and largest period p.
        noise: Standard deviation of the noise.
        domain: Smallest and largest x.
        least_shot: Smallest number of context (support) points.
        shot: Largest number of context points.
        least_query: Smallest number of query points, none of which is in the context; ``None``: always ``query``.
        query: Largest number of query points.
        together: Number of consecutive tasks that share both numbers, since the tasks of a batch must have equal
            shapes.
        floor: Smallest standard deviation that the compared learners can predict. The reference is then the true
            posterior with deviations of at least that.
    """

    kind: ClassVar[str] = "regression"
    modality: ClassVar[str] = "vector"
    metric: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False

    def __init__(
        self,
        seed: int,
        *,
        kernel: Kernel,
        length: Sequence[Rate],
        scale: Sequence[Rate],
        period: Sequence[Rate],
        noise: NonNegative,
        domain: Sequence[float],
        least_shot: Positive,
        shot: Positive,
        least_query: Positive | None,
        query: Positive,
        together: Positive,
        floor: NonNegative,
    ) -> None:
        for name, pair in {"length": length, "scale": scale, "period": period, "domain": domain}.items():
            require(
                len(pair) == 2 and pair[0] <= pair[1],
                f"task.{name}={[*pair]}: two numbers are needed, the smallest and the largest",
            )
        self.seed, self.kernel, self.noise = seed, kernel, noise
        self.length, self.scale, self.period, self.domain = length, scale, period, domain
        self.least_shot, self.least_query, self.together, self.floor = least_shot, least_query, together, floor
        self.shape: EpisodeShape = EpisodeShape(0, shot, query)
        self.spec = Spec("regression", self.modality, (1,), 1)
        self.tested_together = together if least_shot < shot or (least_query or query) < query else 1
        self.check("test", self.shape)

    def check(self, split: Split, shape: EpisodeShape) -> None:
        require(
            self.least_shot <= shape.shot,
            f"task.least_shot={self.least_shot} is more than the {shape.shot} context points of an episode",
        )
        require(
            (self.least_query or 1) <= shape.query,
            f"task.least_query={self.least_query} is more than the {shape.query} query points of an episode",
        )

    def covariance(self, split: Split, indices: Sequence[int], a: Array, b: Array) -> Array:
        """Return the covariance [T, N, M] of the noiseless curves between ``a`` [T, N] and ``b`` [T, M]."""
        u = uniforms(self.seed, split, indices, 3)[..., None, None]
        length, scale, period = (
            low + (high - low) * u[:, i] for i, (low, high) in enumerate((self.length, self.scale, self.period))
        )
        apart = a[:, :, None] - b[:, None, :]
        np.abs(apart, out=apart)  # in place, here and below: new memory takes longer than the computation
        if self.kernel == "mixture":
            found = sum(_bell(apart / end) for end in self.length)
        elif self.kernel == "rbf":
            found = _bell(np.divide(apart, length, out=apart))
        elif self.kernel == "matern52":
            r = np.multiply(apart, sqrt(5) / length, out=apart)
            found = r / 3
            found += 1
            found *= r
            found += 1
            found *= np.exp(np.negative(r, out=r), out=r)
        else:
            found = np.sin(apart * (pi / period))
            if self.kernel == "periodic":
                found = _bell(np.multiply(found, 2 / length, out=found))
            else:
                found *= 2
                np.hypot(found, np.divide(apart, length, out=apart), out=found)
                found = _bell(found)
        found *= scale**2
        return found

    def sawtooth(self, split: Split, indices: Sequence[int], x: Array) -> Array:
        """Return the noiseless sawtooth waves of the tasks at ``x`` [T, N], as [T, N]."""
        _, scale, period, direction, phase = uniforms(self.seed, split, indices, 5)[..., None].swapaxes(0, 1)
        scale, period = (low + (high - low) * u for (low, high), u in ((self.scale, scale), (self.period, period)))
        return scale * ((np.where(direction < 0.5, -x, x) / period - phase) % 1)

    def draw(self, split: Split, indices: Sequence[int], x: Array, most: int | None = None) -> Array:
        """Return the noisy values of the tasks' curves at ``x`` [T, N], as [T, N].

        They are those of the first N of ``most`` points, of which the others need not be computed.
        """
        z = normals(self.seed, split, indices, most or x.shape[1], stream=2)[:, : x.shape[1]]
        if self.kernel == "sawtooth":
            return self.sawtooth(split, indices, x) + self.noise * z
        K = self.covariance(split, indices, x, x)
        # Points that nearly coincide make K singular in float64 without noise.
        diagonal = np.arange(x.shape[1])
        K[:, diagonal, diagonal] += max(self.noise**2, 1e-8 * max(self.scale) ** 2)
        # By torch, which has the run's threads. NumPy has all, for matrices too small to share: on a busy machine these
        # wait for each other a hundred times as long.
        factor = torch.linalg.cholesky(torch.from_numpy(K))
        return (factor @ torch.from_numpy(z)[..., None])[..., 0].numpy()

    def counts(self, split: Split, indices: Sequence[int], shape: EpisodeShape) -> tuple[int, int]:
        """Return the numbers of context and query points of these tasks, at most those of ``shape``."""
        ranges = (self.least_shot, shape.shot), (self.least_query or shape.query, shape.query)
        shot, query = (
            shared_count(self.seed, split, indices, *between, together=self.together, stream=3 + i)
            for i, between in enumerate(ranges)
        )
        return shot, query

    def points(self, split: Split, indices: Sequence[int], shape: EpisodeShape, query: int) -> tuple[Array, Array]:
        """Return x and y, each [T, N]: as many points as the largest context has, then ``query`` query points."""
        low, high = self.domain
        x = low + (high - low) * uniforms(self.seed, split, indices, shape.shot + query, stream=1)
        return x, self.draw(split, indices, x, shape.shot + shape.query)

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        shape = shape or self.shape
        shot, query = self.counts(split, indices, shape)
        values = np.stack(self.points(split, indices, shape, query), axis=-1)
        both = to_device(values, self.device, torch.get_default_dtype())
        parts = both[:, :shot], both[:, shape.shot : shape.shot + query]
        return TaskBatch(*(Labelled(part[..., :1], part[..., 1:]) for part in parts))

    def posterior(self, split: Split, indices: Sequence[int], x: Array, y: Array, at: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation, [T, M] each, of noisy values at ``at`` [T, M] given the context x, y [T,
        N].
        """
        K = self.covariance(split, indices, x, x) + self.noise**2 * np.eye(x.shape[1])
        cross = self.covariance(split, indices, x, at)
        prior = self.covariance(split, indices, at[:, :1], at[:, :1])[:, 0] + self.noise**2
        K += 1e-10 * np.eye(x.shape[1])
        gain = torch.linalg.solve(torch.from_numpy(K), torch.from_numpy(cross)).numpy().swapaxes(1, 2)
        variance = prior - (gain * cross.swapaxes(1, 2)).sum(-1)
        return (gain @ y[..., None])[..., 0], np.sqrt(np.maximum(variance, 1e-10))

    def references(self, split: Split, indices: Sequence[int]) -> dict[str, float]:
        """Return the errors of the true posterior, which no learner can beat; none for sawtooth waves.

        With a ``floor``, the reference is the same mean with deviations of at least that. A learner that is evaluated
        on the context as well can repeat each context value, and only the floor limits its certainty.
        """
        if self.kernel == "sawtooth":
            return {}
        squares, nlls, with_context = [], [], []
        for first in range(0, len(indices), self.together):
            some = list(indices[first : first + self.together])
            shot, query = self.counts(split, some, self.shape)
            x, y = self.points(split, some, self.shape, query)
            queries = slice(self.shape.shot, self.shape.shot + query)
            mean, std = self.posterior(split, some, x[:, :shot], y[:, :shot], x[:, queries])
            std = np.maximum(std, self.floor)
            error = y[:, queries] - mean
            nll = (0.5 * (error / std) ** 2 + np.log(std) + 0.5 * np.log(2 * pi)).sum(1)
            squares.append((error**2).mean(1))
            nlls.append(nll / query)
            if self.floor:
                known = shot * (np.log(self.floor) + 0.5 * np.log(2 * pi))
                with_context.append((nll + known) / (query + shot))
        held = f", its deviations at least {self.floor:g}" if self.floor else ""
        found = {
            "mse of the true posterior": squares,
            f"nll of the true posterior{held}": nlls,
            f"nll_with_context of the true posterior{held}": with_context,
        }
        return {name: float(np.concatenate(values).mean()) for name, values in found.items() if values}

    def protocol(self) -> dict[str, Any]:
        return {
            "data": f"Gaussian processes, {self.kernel}",
            "length": [*self.length],
            "scale": [*self.scale],
            **({"period": [*self.period]} if self.kernel in ("periodic", "sawtooth") else {}),
            "noise": self.noise,
            "shot": [self.least_shot, self.shape.shot],
            "query": f"{self.least_query} to {self.shape.query} points beside the context"
            if self.least_query
            else f"{self.shape.query} points beside the context",
        }

    def picture(self, learner: Learner) -> Figure:
        """Plot three test curves with their context, the fit, and the true posterior."""
        from matplotlib.figure import Figure

        indices = range(3)
        support = self.batch("test", indices).support
        low, high = self.domain
        x = torch.linspace(low, high, 200, device=self.device).expand(3, -1)
        with torch.no_grad():
            predictor = learner.adapt(support)
            fit = predictor(x[..., None])[..., 0].cpu().numpy()
            gaussians = getattr(predictor, "gaussians", None)
            bands = [] if gaussians is None else [g.cpu().numpy() for g in gaussians(x[..., None])]
        sx, sy = (part[..., 0].double().cpu().numpy() for part in (support.x, support.y))
        grid = x.double().cpu().numpy()
        known = None if self.kernel == "sawtooth" else self.posterior("test", indices, sx, sy, grid)
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        for task, ax in enumerate(figure.subplots(1, 3, sharey=True)):
            if known is not None:
                mean, std = (part[task] for part in known)
                ax.fill_between(grid[task], mean - 2 * std, mean + 2 * std, color="0.9", lw=0)
                ax.plot(grid[task], mean, "--", color=style.TRUTH, label="true posterior, ± 2 standard deviations")
            for sample in range(min(4, len(bands[0])) if bands else 0):
                m, s = bands[0][sample, task, :, 0], bands[1][sample, task, :, 0]
                ax.fill_between(grid[task], m - 2 * s, m + 2 * s, color=style.LATE, alpha=0.12, lw=0)
            ax.plot(grid[task], fit[task], color=style.LATE, label="learned")
            ax.plot(sx[task], sy[task], ".", color=style.GIVEN, ms=7, label="context")
            ax.set(xlabel="x", title=f"test curve {task + 1}")
        figure.axes[0].set_ylabel("y")
        style.legend(figure, figure.axes[0])
        figure.suptitle("Curves of the meta-test split, completed from their context")
        return figure


def _bell(distance: Array) -> Array:
    """Return exp(-distance^2 / 2), in the memory of ``distance``."""
    np.square(distance, out=distance)
    distance *= -0.5
    return np.exp(distance, out=distance)
