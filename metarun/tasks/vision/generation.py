"""New images of a class, from a few: a task has classes, each with a support set, and asks for more of each."""

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
    """Evaluates generated images; :class:`metarun.evaluation.samples.Judge` is one."""

    @abstractmethod
    def of(self, images: FewShot) -> SampleEvaluator:
        """Return the evaluator for images of this family, of which it may use the meta-train classes."""

    @abstractmethod
    def __call__(self, learner: Callable[[Tensor], Tensor], batch: TaskBatch) -> dict[str, Tensor]:
        """Return each metric as [T] of the samples that ``learner``, adapted to ``batch.support``, generates."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Return the facts without which its metrics cannot be compared."""


class Generation(Task):
    """Few-shot generation over any family of few-shot image classification, ``images``, whose splits are this one's.

    Labels and images change places: x [T, N] are class numbers 0..way-1, y [T, N, C, H, W] images of them in 0..1. Of
    ``way`` unseen classes a learner is given ``shot`` images each and makes ``query`` / 2 others of each. ``judge``
    judges them, and with them as many real ones (``real_accuracy`` and so on: what is the most to be had);
    the other half of the ``query`` real images is what it compares with. ``test_shots``: further shots to test.
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
            f"task.query={query}: half of these images are known to the judge, half are held out; 4, 6, 8, ...",
        )
        self.shape: EpisodeShape = EpisodeShape(way, shot, query)
        self.test_shots = tuple(test_shots)
        for split in images.classes:
            self.check(split, self.shape)
        for other in self.test_shots:
            self.check("test", self.shape.changed(shot=other))
        self._judge = judge
        self._train_judge()
        self.ink = getattr(images, "ink", None)

    def _train_judge(self) -> None:
        """A judge that knows the meta-train classes."""
        self.judge, shape = self._judge.of(self.images), self.images.spec.input_shape
        self.spec = Spec(self.kind, self.modality, shape, self.shape.way, judge=self.judge)  # type: ignore[arg-type]

    def check(self, split: Split, shape: EpisodeShape) -> None:
        self.images.check(split, shape)

    def record(self) -> DataRecord:
        return self.images.record()

    def class_names(self) -> Sequence[str]:
        return self.images.class_names()

    def keep_classes(self, classes: Mapping[Split, Sequence[str]]) -> None:
        self.images.keep_classes(classes)
        self._train_judge()

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
        return {**self.images.protocol(), **shape, **self.judge.protocol()}

    def picture(self, learner: Learner) -> Figure:
        """Ten classes of the first test task, a row each: its support set, ten samples, and real images."""
        from matplotlib.figure import Figure

        batch, way, each = self.batch("test", [0]), min(10, self.shape.way), 10
        learner.eval()
        with torch.no_grad(), forked_rng(self.device, self.seed):
            classes = torch.arange(way, device=self.device).repeat_interleave(each)[None]
            samples = learner.adapt(batch.support)(classes)
        shot, real = min(5, self.shape.shot), min(5, self.shape.query)
        parts = {"given": (batch.support.y, shot), "made": (samples, each), "real, not given": (batch.query.y, real)}
        widths = [count for _, count in parts.values()]
        figure = Figure(figsize=(0.5 * sum(widths) + 0.4, 0.5 * way + 0.5), layout="constrained")
        for ax, (name, (images, count)) in zip(figure.subplots(1, 3, width_ratios=widths), parts.items(), strict=True):
            by_class = images[0].unflatten(0, (way if name == "made" else self.shape.way, -1))
            ax.imshow(self._tiled(by_class[:way, :count]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_title(name, fontsize=10)
            ax.set_axis_off()
        return figure

    def _tiled(self, images: Tensor) -> np.ndarray:
        """[rows, columns, C, H, W] in one picture, dark on bright, with a gap between each two."""
        images = 1 - images.clamp(0, 1) if self.ink == "light" else images.clamp(0, 1)
        images = torch.nn.functional.pad(images, (1, 1, 1, 1), value=0.8)
        rows, columns, channels, height, width = images.shape
        tiled = images.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels).cpu()
        return (tiled if channels == 3 else tiled.mean(-1)).numpy()
