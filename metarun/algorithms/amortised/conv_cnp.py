"""Convolutional conditional neural processes: the context becomes a function on a grid, which a CNN transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.amortised.neural_process import Gaussian, PredictiveProcess, initialise, log_density
from metarun.algorithms.amortised.sequence import embedded
from metarun.algorithms.base import Metrics
from metarun.algorithms.supervised import dry_run
from metarun.errors import require
from metarun.models.grid import SetConvolution, UNet, same_size
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.types import Count, Decay, NonNegative, Positive, Rate

EMPTY = 1e-8
"""Added to densities, by which signals are divided."""


class ConvCNP(PredictiveProcess):
    """The convolutional conditional neural process (Gordon et al. 2020, arXiv:1910.13556, section 4 and Algorithm 1).

    Inputs x have one or two dimensions. A set convolution maps context pairs to a grid: the density of context points,
    and the mean of their values weighted by a Gaussian of the distance. A linear layer and a sigmoid give ``hidden``
    channels, a CNN with ReLUs transforms them, and two more set convolutions read mean and deviation at any x, as
    softplus + ``min_std``. Length scales start at ``length`` grid points and are learned for each channel. Predictions
    shift with the context if both stay away from the edges of the grid.

    The loss is the negative log likelihood of a task's query points, summed over them, as in the authors' code.

    Args:
        model: Embeds x [T, N, ...] in one or two coordinates. :class:`Linear` leaves vectors as they are.
        spec: The task family.
        domain: Smallest and largest coordinate.
        margin: Width of the grid beyond the domain on each side.
        density: Grid points per unit of a coordinate.
        hidden: Channels before and after the CNN.
        channels: Channels between the convolutions of the CNN. Not used by a U-Net.
        kernel: Size of the convolutions, odd.
        min_std: Smallest standard deviation that is predicted.
        halvings: Halvings of the resolution in a U-Net, the paper's "XL" network; 0 or ``None``: one resolution.
        length: Initial length scale of the set convolutions, in grid points; ``None``: 2.

    Raises:
        UserError: Embedded inputs have more than two dimensions, or the domain or the kernel's size is not one.
    """

    grid: Tensor

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        domain: Sequence[float],
        margin: NonNegative,
        density: Rate,
        hidden: Positive,
        channels: Sequence[Positive],
        kernel: Positive,
        min_std: NonNegative,
        train_shot: Positive | None,
        train_query: Positive | None,
        outer_lr: Rate,
        halve_every: Positive | None,
        decay_over: Count | None,
        decay: Decay,
        halvings: Count | None = None,
        length: Rate | None = None,
    ) -> None:
        super().__init__()
        inputs, outputs = dry_run(model, spec).shape[-1], spec.output_size
        require(
            inputs in (1, 2),
            f"convcnp reads one or two coordinates, and model and task give {inputs} features; use model=linear and a "
            "task with such inputs",
        )
        require(
            len(domain) == 2 and domain[0] < domain[1],
            f"algorithm.domain={[*domain]}: two numbers are needed, the smallest and the largest coordinate",
        )
        require(kernel % 2 == 1, f"algorithm.kernel={kernel}: the size must be odd")
        self.model, self.spec, self.min_std = model, spec, min_std
        self.train_shot, self.train_query = train_shot, train_query
        low, high = domain[0] - margin, domain[1] + margin
        halvings = halvings or 0
        require(halvings <= 10, f"algorithm.halvings={halvings}: at most 10, which make a grid of 1,024 points one")
        part = 2**halvings
        points = part * ceil(max(2, round(density * (high - low))) / part)
        self.register_buffer("grid", torch.linspace(low, high, points))
        spacing = float(self.grid[1] - self.grid[0])
        self.cnn = UNet(hidden, halvings, kernel, inputs) if halvings else same_size(hidden, channels, kernel, inputs)
        scale = spacing * (length or 2)
        self.encode = SetConvolution(1 + outputs, hidden, scale)
        read = 2 * hidden if halvings else hidden
        self.mean, self.std = (SetConvolution(read, outputs, scale) for _ in range(2))
        initialise(self, but=("model",))
        self.learn_with(outer_lr, halve_every, decay_over, decay)

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        mean, std = self.predictive(batch.support)(batch.query.x)
        likelihoods = log_density(mean[0], std[0], batch.query.y)
        loss = -likelihoods.sum(-1).mean()
        metrics = {"loss": loss, "nll": -likelihoods.mean(), "mse": (mean[0] - batch.query.y).square().mean()}
        return loss, {name: value.detach() for name, value in metrics.items()}

    def predictive(self, support: Labelled) -> Callable[[Tensor], Gaussian]:
        channels = self.cnn(torch.sigmoid(self.encode(self._on_grid(support), dim=1)))
        return lambda x: self._read(channels, embedded(self.model, x))

    def _on_grid(self, support: Labelled) -> Tensor:
        """Return the density of the context and its mean values on the grid, [T, 1 + D, G] or [T, 1 + D, G, G]."""
        values = torch.cat([torch.ones_like(support.y[..., :1]), support.y], -1).transpose(1, 2)
        *rows, last = self.encode.weights(embedded(self.model, support.x), self.grid)
        # Matrix products of [1 or G, N] and [N, G]. No product has points, rows and columns of the grid at once.
        read = (values[..., None] * rows[0]).transpose(2, 3) if rows else values[:, :, None]
        sums = read @ last
        sums = sums if rows else sums[:, :, 0]
        density = sums[:, :1]
        return torch.cat([density, sums[:, 1:] / (density + EMPTY)], 1)

    def _read(self, channels: Tensor, x: Tensor) -> Gaussian:
        """Predict at ``x`` [T, M, 1 or 2] from the channels of the grid; mean and deviation are [1, T, M, D]."""
        found = []
        for head in (self.mean, self.std):
            *rows, last = (weights.transpose(2, 3) for weights in head.weights(x, self.grid))
            # Over a second coordinate it is a mean: a sum over the plane starts several times as large.
            read = channels @ last * (rows[0] / rows[0].sum(2, keepdim=True)) if rows else channels[:, :, None] @ last
            found.append(head(read.sum(2).transpose(1, 2)))
        mean, raw = found
        return mean[None], self.min_std + F.softplus(raw)[None]

    def protocol(self) -> dict[str, Any]:
        return {"grid_points": len(self.grid)}
