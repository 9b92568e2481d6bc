"""Images as functions of the plane: a task is one image, given at some or all pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun import style
from metarun.errors import require
from metarun.tasks.base import Task
from metarun.tasks.counts import shared_count
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.tasks.fewshot import FewShot
from metarun.tasks.record import DataRecord
from metarun.tasks.rng import choose, uniforms
from metarun.tasks.to_device import to_device
from metarun.types import Positive, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import Learner


class Field(Task):
    """Regression of an image from its values at some or all pixels.

    x [pixels, 2] are row and column of a pixel, each from -1 to 1; y [pixels, channels] are its values in 0..1. The
    query set is all pixels or, if an algorithm meta-trains on fewer (``train_query``), random pixels outside the
    support set. The metrics are the mean squared error over all pixels and the peak signal-to-noise ratio -10
    log10(mse) in decibel.

    With all pixels given, the family measures how far a learned initialisation gets in a few steps (Tancik et al. 2021,
    arXiv:2012.02189). With few, it is image completion (Garnelo et al. 2018, arXiv:1807.01613, section 4.2).

    Args:
        seed: Seed of the tasks.
        images: A family of few-shot image classification. Its splits are used, so that test images belong to classes
            that are not in meta-training.
        shot: Number of support pixels; ``None``: all.
        least_shot: In meta-training the number of support pixels is uniform between this and ``shot``; ``None``: always
            ``shot``.
        test_shots: Further numbers of support pixels to test.
        order: ``random`` support pixels, or the first ones row by row (``ordered``).
        together: Number of consecutive tasks that share the number of support pixels, since the tasks of a batch must
            have equal shapes.
    """

    kind: ClassVar[str] = "regression"
    modality: ClassVar[str] = "vector"
    metric: ClassVar[str] = "psnr"

    def __init__(
        self,
        seed: int,
        *,
        images: FewShot,
        shot: Positive | None,
        least_shot: Positive | None,
        test_shots: Sequence[Positive],
        order: Literal["random", "ordered"],
        together: Positive,
    ) -> None:
        self.seed, self.images, self.order = seed, images, order
        self.least_shot, self.test_shots, self.together = least_shot, tuple(test_shots), together
        require(images.modality == "image", f"task.images is a family of {images.modality}, not of images")
        channels, self.height, self.width = images.spec.input_shape
        self.pixels = self.height * self.width
        self.shape: EpisodeShape = EpisodeShape(0, shot or self.pixels, self.pixels)
        for other in self._tested().values():
            self.check("test", other)
        self.check("train", self.shape)
        self.spec = Spec("regression", self.modality, (2,), channels, peak=1.0)
        self.rows = self._rows()
        rows, columns = (torch.linspace(-1, 1, n) for n in (self.height, self.width))
        self.grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
        """Coordinates of all pixels, [pixels, 2], row by row."""

    def _rows(self) -> dict[Split, NDArray[np.int64]]:
        """Return the rows of the images of each split."""
        offsets = self.images.data.offsets
        return {
            split: np.concatenate([np.arange(offsets[c], offsets[c + 1]) for c in classes])
            for split, classes in self.images.classes.items()
        }

    def record(self) -> DataRecord:
        return self.images.record()

    def class_names(self) -> Sequence[str]:
        return self.images.class_names()

    def keep_classes(self, classes: Mapping[Split, Sequence[str]]) -> None:
        self.images.keep_classes(classes)
        self.rows = self._rows()

    def to(self, device: torch.device) -> Field:
        self.device, self.grid = device, self.grid.to(device)
        self.images = copy(self.images).to(device)  # a shallow copy of this task must not move the original's
        return self

    def check(self, split: Split, shape: EpisodeShape) -> None:
        require(
            shape.shot <= self.pixels,
            f"task.shot={shape.shot} is more than the {self.pixels} pixels of an image; null takes all",
        )
        require(
            shape.query == self.pixels or shape.shot + shape.query <= self.pixels,
            f"{shape.shot} support and {shape.query} query pixels are more than the {self.pixels} of an image; "
            f"use a sum of at most {self.pixels}, or {self.pixels} query pixels",
        )
        require(
            split != "train" or (self.least_shot or 1) <= shape.shot,
            f"task.least_shot={self.least_shot} is more than the largest number of support pixels, {shape.shot}",
        )

    def variants(self) -> dict[str, EpisodeShape | None]:
        return {**self._tested()}

    def _tested(self) -> dict[str, EpisodeShape]:
        others = (shot for shot in self.test_shots if shot != self.shape.shot)
        return {"": self.shape, **{f"_{shot}px": self.shape.changed(shot=shot) for shot in others}}

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        shape = shape or self.shape
        rows, tasks, shot = self.rows[split], len(indices), shape.shot
        chosen = rows[choose(uniforms(self.seed, split, indices, 1), len(rows))]
        images = self.images.examples(to_device(chosen, self.device))[:, 0].flatten(2).transpose(1, 2)
        dtype = torch.get_default_dtype()
        y = images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)
        whole = Labelled(self.grid.to(dtype).expand(tasks, -1, -1), y)
        if split == "train" and self.least_shot:
            shot = shared_count(self.seed, split, indices, self.least_shot, shot, together=self.together, stream=2)
        if shot == shape.query == self.pixels:
            return TaskBatch(whole, whole)
        place = to_device(self.places(split, indices, shot), self.device)
        task = torch.arange(tasks, device=self.device)[:, None]

        def at(place: Tensor) -> Labelled:
            return whole.map(lambda part: part[task, place])

        rest = place[:, shot : shot + shape.query]
        return TaskBatch(at(place[:, :shot]), whole if shape.query == self.pixels else at(rest))

    def places(self, split: Split, indices: Sequence[int], shot: int) -> NDArray[np.int64]:
        """Return a permutation of the pixels for each task, [T, pixels]; the first ``shot`` are the support set."""
        u = uniforms(self.seed, split, indices, self.pixels, stream=1)
        if self.order == "ordered":
            u[:, :shot] = np.arange(-shot, 0)
        return u.argsort(axis=1)

    def protocol(self) -> dict[str, Any]:
        return {
            "data": f"{self.images.name} as fields",
            "size": [self.height, self.width],
            "shot": self.shape.shot,
            **({} if self.shape.shot == self.pixels else {"order": self.order}),
            **({"train_shot": [self.least_shot, "shot"]} if self.least_shot else {}),
            "images": {split: len(rows) for split, rows in self.rows.items()},
        }

    def picture(self, learner: Learner) -> Figure:
        """Plot eight test images, the pixels given and the reconstruction, for each number of pixels.

        With one number of pixels, the image after each adaptation step is shown; with several, the final one. For
        learners that predict a standard deviation, it is shown too.
        """
        from matplotlib.figure import Figure

        shapes = sorted(self._tested().values(), key=lambda shape: shape.shot)
        learner.eval()
        shown: list[tuple[str, NDArray[np.float32], Tensor | None]] = []
        """Rows of the figure: name, images [8, height, width, 3], and errors [8] of predictions."""
        for shape in shapes:
            batch = self.batch("test", range(8), shape)
            whole = batch.query
            with torch.no_grad():
                predictors = list(learner.adaptations(batch.support))
                fields = [predict(whole.x) for predict in predictors]
                deviation = _deviation(predictors[-1], whole.x)
            steps = sorted({0, *range(1, min(len(fields), 4)), len(fields) - 1}) if len(shapes) == 1 else [-1]
            name = "given" if len(shapes) == 1 else f"{shape.shot} pixels"
            shown.append((name, self._given(shape, whole.y), None))
            for k in steps:
                name = f"step {k}" if len(fields) > 1 and k >= 0 else "mean" if deviation is not None else "completed"
                shown.append((name, self._image(fields[k]), (fields[k] - whole.y).square().flatten(1).mean(1)))
            if deviation is not None:
                shown.append(("deviation", self._image(2 * deviation), None))
        shown.append(("image", self._image(whole.y), None))
        figure, many = Figure(layout="constrained"), len(shapes) > 1
        # Several numbers of pixels are columns; adaptation steps are rows.
        figure.set_size_inches((0.87 * len(shown) + 0.2, 8.1) if many else (7.2, 1.0 * len(shown) + 0.4))
        axes = figure.subplots(8, len(shown)).T if many else figure.subplots(len(shown), 8)
        for line, (name, images, errors) in zip(axes, shown, strict=True):
            for task, ax in enumerate(line):
                ax.imshow(images[task], cmap="gray", vmin=0, vmax=1)
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
                if errors is not None:
                    ax.set_xlabel(f"{float(-10 * errors[task].log10()):.1f} dB", fontsize=style.TINY, labelpad=1)
            (line[0].set_title if many else line[0].set_ylabel)(name, fontsize=style.SMALL)
        blue = "; those not given are blue" if any(shape.shot < self.pixels for shape in shapes) else ""
        figure.suptitle(f"Images of unseen classes, from the pixels given{blue}")
        return figure

    def _given(self, shape: EpisodeShape, y: Tensor) -> NDArray[np.float32]:
        """Return the test images of :meth:`picture` with pixels outside the support set blue, [8, height, width, 3]."""
        images = self._image(y).reshape(len(y), self.pixels, -1)
        colours = np.broadcast_to(images, (*images.shape[:2], 3)).copy()
        for colour, places in zip(colours, self.places("test", range(len(y)), shape.shot), strict=True):
            colour[places[shape.shot :]] = (0.16, 0.27, 0.55)
        return colours.reshape(len(y), self.height, self.width, 3)

    def _image(self, values: Tensor) -> NDArray[np.float32]:
        """Convert values [T, pixels, channels] to images [T, height, width] or [T, height, width, 3] in 0..1."""
        image = values.float().clamp(0, 1).view(len(values), self.height, self.width, -1).cpu()
        return (image if image.shape[-1] == 3 else image.mean(-1)).numpy()


def _deviation(predictor: Any, x: Tensor) -> Tensor | None:
    """Return the standard deviation [T, N, D] of a predictor's mixture of Gaussians at ``x``; ``None`` if it has
    none.
    """
    if not hasattr(predictor, "gaussians"):
        return None
    mean, std = predictor.gaussians(x)
    return (std.square().mean(0) + mean.var(0, correction=0)).sqrt()
