"""Few-shot image generation: a task has classes with a support set each and asks for further images of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarun.errors import require
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.tasks.fewshot import FewShot
from metarun.tasks.record import DataRecord
from metarun.tasks.rng import forked_rng
from metarun.types import Positive, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import Learner


class SampleEvaluator(ABC):
    """The base class of evaluators of generated images (see :class:`metarun.evaluation.samples.QualityClassifier`)."""

    @abstractmethod
    def train_on(self, images: FewShot) -> SampleEvaluator:
        """Return the evaluator for the images of a family.

        Args:
            images: The family. The evaluator may learn from its meta-train classes.
        """

    @abstractmethod
    def __call__(self, learner: Callable[[Tensor], Tensor], batch: TaskBatch) -> dict[str, Tensor]:
        """Evaluate samples of an adapted learner.

        Args:
            learner: Generator adapted to ``batch.support``: class labels [T, N] -> images [T, N, C, H, W].
            batch: The tasks, with real images as query set.

        Returns:
            Each metric as [T].
        """

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Return the facts needed to compare its metrics."""


class Generation(Task):
    """Few-shot generation of images of unseen classes.

    Labels and images change places: x [T, N] are class numbers 0..way-1 and y [T, N, C, H, W] images in 0..1. A learner
    gets ``shot`` images of each of ``way`` classes and generates ``query`` / 2 images of each. Half of the ``query``
    real images are the reference set of the evaluation; the other half is evaluated like the samples and gives an upper
    bound (``real_accuracy`` and so on).

    Args:
        seed: Seed of the tasks.
        images: A family of few-shot image classification, whose splits are used.
        judge: Evaluator of the samples.
        way: Classes of a task.
        shot: Support images of a class.
        query: Real query images of a class, an even number of at least 4.
        test_shots: Further shots to test.
    """

    kind: ClassVar[str] = "generation"
    modality: ClassVar[str] = "image"
    metric: ClassVar[str] = "accuracy"

    def __init__(
        self,
        seed: int,
        *,
        images: FewShot,
        judge: SampleEvaluator,
        way: Positive,
        shot: Positive,
        query: Positive,
        test_shots: Sequence[Positive],
    ) -> None:
        self.seed, self.images = seed, images
        self.held_out_val = images.held_out_val
        require(images.modality == "image", f"task.images is a family of {images.modality}, not of images")
        require(
            query % 2 == 0 and query >= 4,
            f"task.query={query}: half of these images are the reference set, half are held out; use 4, 6, 8, ...",
        )
        self.shape: EpisodeShape = EpisodeShape(way, shot, query)
        self.test_shots = tuple(test_shots)
        for split in images.classes:
            self.check(split, self.shape)
        for other in self.test_shots:
            self.check("test", self.shape.changed(shot=other))
        self._untrained_evaluator = judge
        self._train_evaluator()
        self.ink = getattr(images, "ink", None)

    def _train_evaluator(self) -> None:
        """Train an evaluator that knows the meta-train classes."""
        self.evaluator, shape = self._untrained_evaluator.train_on(self.images), self.images.spec.input_shape
        self.spec = Spec(self.kind, self.modality, shape, self.shape.way, evaluate_samples=self.evaluator)  # type: ignore[arg-type]

    def check(self, split: Split, shape: EpisodeShape) -> None:
        self.images.check(split, shape)

    def record(self) -> DataRecord:
        return self.images.record()

    def class_names(self) -> Sequence[str]:
        return self.images.class_names()

    def keep_classes(self, classes: Mapping[Split, Sequence[str]]) -> None:
        self.images.keep_classes(classes)
        self._train_evaluator()

    def to(self, device: torch.device) -> Generation:
        self.device = device
        self.images = copy(self.images).to(device)  # a shallow copy of this task must not move the original's
        return self

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        batch, dtype = self.images.batch(split, indices, shape or self.shape), torch.get_default_dtype()

        def turned(part: Labelled) -> Labelled:
            images = part.x.to(dtype) / 255 if part.x.dtype == torch.uint8 else part.x.to(dtype)
            return replace(part, x=part.y, y=images)

        return TaskBatch(turned(batch.support), turned(batch.query))

    def variants(self) -> dict[str, EpisodeShape | None]:
        others = {f"_{n}shot": self.shape.changed(shot=n) for n in self.test_shots if n != self.shape.shot}
        return {"": self.shape, **others}

    def protocol(self) -> dict[str, Any]:
        shape = {"way": self.shape.way, "shot": self.shape.shot, "query": self.shape.query}
        return {**self.images.protocol(), **shape, **self.evaluator.protocol()}

    def picture(self, learner: Learner) -> Figure:
        """Plot ten classes of the first test task, a row each: its support set, ten samples, and real images."""
        from matplotlib.figure import Figure

        batch, way, each = self.batch("test", [0]), min(10, self.shape.way), 10
        learner.eval()
        with torch.no_grad(), forked_rng(self.device, self.seed):
            classes = torch.arange(way, device=self.device).repeat_interleave(each)[None]
            samples = learner.adapt(batch.support)(classes)
        shot, real = min(5, self.shape.shot), min(5, self.shape.query)
        parts = {
            "given": (batch.support.y, shot),
            "generated": (samples, each),
            "real, not given": (batch.query.y, real),
        }
        widths = [count for _, count in parts.values()]
        figure = Figure(figsize=(0.5 * sum(widths) + 0.4, 0.5 * way + 0.5), layout="constrained")
        for ax, (name, (images, count)) in zip(figure.subplots(1, 3, width_ratios=widths), parts.items(), strict=True):
            by_class = images[0].unflatten(0, (way if name == "generated" else self.shape.way, -1))
            ax.imshow(self._tiled(by_class[:way, :count]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_title(name)
            ax.set_axis_off()
        figure.suptitle("Images of unseen classes, a row each")
        return figure

    def _tiled(self, images: Tensor) -> np.ndarray:
        """Tile images [rows, columns, C, H, W] into one, dark on bright, with gaps."""
        images = 1 - images.clamp(0, 1) if self.ink == "light" else images.clamp(0, 1)
        images = torch.nn.functional.pad(images, (1, 1, 1, 1), value=0.8)
        rows, columns, channels, height, width = images.shape
        tiled = images.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels).cpu()
        return (tiled if channels == 3 else tiled.mean(-1)).numpy()
