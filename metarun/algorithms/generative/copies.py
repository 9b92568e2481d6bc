"""Generation without learning: randomly changed copies of the support images, a baseline for the metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.base import Metrics
from metarun.algorithms.generative.base import Generative, of_task, sets
from metarun.algorithms.supervised import Adapted
from metarun.algorithms.untrained import Untrained
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.types import Fraction, NonNegative


class Copies(Untrained, Generative):
    """Each sample is a randomly drawn and changed support image of its class. The model has no effect.

    Args:
        model: Unused.
        spec: Shapes of the task.
        warp: Strength of a random affine map of each sample, as :attr:`ImageFewShot.augment`: the four linear entries
            differ from the identity by at most this, the shift is at most half of it, in units of half the image.
        smooth: True for bilinear interpolation, which makes binary strokes grey; false for the nearest pixel.
        scatter: Probability that a pixel is swapped with a random one of the same image. 1 leaves noise with as much
            ink.
    """

    def __init__(self, model: nn.Module, spec: Spec, *, warp: NonNegative, smooth: bool, scatter: Fraction) -> None:
        super().__init__(model, spec)
        self.warp, self.smooth, self.scatter = warp, smooth, scatter

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        loss = (self.adapt(batch.support)(batch.query.x) - batch.query.y).square().mean()
        return loss, {"loss": loss}

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        shown = sets(support)

        def made(classes: Tensor) -> Tensor:
            index = of_task(classes, support.way)
            which = torch.rand(len(index), device=shown.device).mul(shown.shape[1]).long()
            return self.changed(shown[index, which]).unflatten(0, classes.shape)

        yield made

    def changed(self, images: Tensor) -> Tensor:
        """Return randomly changed images [N, C, H, W]."""
        if self.warp:
            apart = self.warp * (2 * torch.rand(len(images), 2, 3, dtype=images.dtype, device=images.device) - 1)
            apart[..., 2] /= 2
            theta = apart + torch.eye(2, 3, dtype=images.dtype, device=images.device)
            grid = F.affine_grid(theta, list(images.shape), align_corners=False)
            images = F.grid_sample(
                images, grid, "bilinear" if self.smooth else "nearest", padding_mode="border", align_corners=False
            )
        if self.scatter:
            pixels = images.flatten(2)
            others = torch.rand_like(pixels[:, :1]).argsort(-1).expand_as(pixels)
            exchanged = torch.rand_like(pixels[:, :1]) < self.scatter
            images = torch.where(exchanged, pixels.gather(2, others), pixels).view_as(images)
        return images

    def protocol(self) -> dict[str, Any]:
        return {"warp": self.warp, "smooth": self.smooth, "scatter": self.scatter}
