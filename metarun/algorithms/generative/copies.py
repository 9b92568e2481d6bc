"""Generation without learning: the support set again, changed at random; it shows the measures' limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.base import Metrics
from metarun.algorithms.generative.base import Generative, of_task, sets
from metarun.algorithms.supervised import Adapted
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.types import Fraction, NonNegative


class Copies(Generative):
    """Each sample is a support image of its class, drawn at random.

    ``warp`` is how far an affine map of its own moves it, as :attr:`ImageFewShot.augment` has it: the four linear
    entries differ from the identity by up to this, the shift is up to half of it, in halves of the image. Pixels are
    the nearest ones or, ``smooth``, come from four, which makes strokes of one bit grey. Then a pixel is exchanged for
    another of the same image, drawn at random, with the chance ``scatter``: 1 leaves noise with as much ink. Nothing is
    learned, and the model has no effect.
    """

    def __init__(self, model: nn.Module, spec: Spec, *, warp: NonNegative, smooth: bool, scatter: Fraction) -> None:
        super().__init__()
        self.model, self.spec, self.warp = model.requires_grad_(False), spec, warp
        self.smooth, self.scatter = smooth, scatter
        self.optimizer = None

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
        """[N, C, H, W]."""
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
