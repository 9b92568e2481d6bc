"""Images as functions of the plane: a task is one image, given by its value at some or all pixels."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarun.errors import require
from metarun.tasks.base import EpisodeShape, Labelled, Spec, Task, TaskBatch
from metarun.tasks.fewshot import FewShot
from metarun.tasks.rng import choose, uniforms
from metarun.types import Positive, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.algorithms.base import SupervisedAlgorithm


class Field(Task):
    """A network of coordinates is fitted to an image; learned initialisations make that a matter of a few steps.

    Tancik et al. 2021, arXiv:2012.02189. x [pixels, 2]: a pixel's row and column, each from -1 to 1; y [pixels,
    channels]: its value, 0 to 1. The support set are ``shot`` random pixels (null: all), the query set all pixels;
    judged by the peak signal-to-noise ratio -10 log10(mse), in decibel. ``images`` is any family of few-shot image
    classification: its splits are this one's, so that test images are of classes that no meta-training image is of.
    """

    kind: ClassVar[str] = "regression"
    modality: ClassVar[str] = "vector"
    metric: ClassVar[str] = "psnr"

    def __init__(self, seed: int, *, images: FewShot, shot: Positive | None) -> None:
        self.seed, self.images = seed, images
        require(images.modality == "image", f"task.images is a family of {images.modality}, not of images")
        channels, self.height, self.width = images.spec.input_shape
        pixels = self.height * self.width
        require(
            shot is None or shot <= pixels,
            f"task.shot={shot} is more than the {pixels} pixels of an image; null takes all",
        )
        self.shape: EpisodeShape = EpisodeShape(0, shot or pixels, pixels)
        self.spec = Spec("regression", self.modality, (2,), channels, peak=1.0)
        offsets = images.data.offsets
        self.rows = {
            split: np.concatenate([np.arange(offsets[c], offsets[c + 1]) for c in classes])
            for split, classes in images.classes.items()
        }
        rows, columns = (torch.linspace(-1, 1, n) for n in (self.height, self.width))
        self.grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
        """[pixels, 2], row by row."""

    def to(self, device: torch.device) -> Field:
        self.device, self.grid = device, self.grid.to(device)
        self.images = copy(self.images).to(device)  # a shallow copy of this task must not move the original's
        return self

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        shape = shape or self.shape
        rows, tasks = self.rows[split], len(indices)
        chosen = rows[choose(uniforms(self.seed, split, indices, 1), len(rows))]
        images = self.images.examples(torch.from_numpy(chosen).to(self.device))[:, 0].flatten(2).transpose(1, 2)
        dtype = torch.get_default_dtype()
        y = images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)
        x = self.grid.to(dtype).expand(tasks, -1, -1)
        whole = Labelled(x, y)
        if shape.shot == x.shape[1]:
            return TaskBatch(whole, whole)
        seen = torch.from_numpy(choose(uniforms(self.seed, split, indices, shape.shot, stream=1), x.shape[1]))
        seen, task = seen.to(self.device), torch.arange(tasks, device=self.device)[:, None]
        return TaskBatch(Labelled(x[task, seen], y[task, seen]), whole)

    def protocol(self) -> dict[str, Any]:
        return {
            "data": f"{self.images.name} as fields",
            "size": [self.height, self.width],
            "shot": self.shape.shot,
            "images": {split: len(rows) for split, rows in self.rows.items()},
        }

    def picture(self, algorithm: SupervisedAlgorithm) -> Figure:  # type: ignore[override]
        """Six test images, a column each: what is given, then the field after each step of adaptation."""
        from matplotlib.figure import Figure

        batch = self.batch("test", range(6))
        with torch.no_grad():
            fields = [adapted(batch.query.x) for adapted in algorithm.adaptations(batch.support)]
        steps = sorted({0, *range(1, min(len(fields), 4)), len(fields) - 1})
        given = torch.full_like(batch.query.y, 0.5)
        if self.shape.shot == self.shape.query:
            given = batch.query.y
        else:
            place = ((batch.support.x + 1) / 2 * self.grid.new_tensor([self.height - 1, self.width - 1])).round().long()
            at = place[..., 0] * self.width + place[..., 1]
            given.scatter_(1, at[..., None].expand_as(batch.support.y), batch.support.y)
        shown = {"given": given, **{f"step {k}": fields[k] for k in steps}, "image": batch.query.y}
        figure = Figure(figsize=(9, 1.5 * len(shown)), layout="constrained")
        for row, (name, values) in zip(figure.subplots(len(shown), 6), shown.items(), strict=True):
            noise = (values - batch.query.y).square().flatten(1).mean(1)
            for task, ax in enumerate(row):
                ax.imshow(self._image(values[task]), cmap="gray", vmin=0, vmax=1)
                ax.set(xticks=[], yticks=[])
                if name.startswith("step"):
                    ax.set_xlabel(f"{float(-10 * noise[task].log10()):.1f} dB", fontsize=7)
            row[0].set_ylabel(name, fontsize=9)
        figure.suptitle("Images of unseen classes as fields, by steps of adaptation", fontsize=10)
        return figure

    def _image(self, values: Tensor) -> np.ndarray:
        """[pixels, channels] -> [height, width] or [height, width, 3], in 0..1."""
        image = values.clamp(0, 1).view(self.height, self.width, -1).cpu()
        return (image if image.shape[-1] == 3 else image.mean(-1)).numpy()
