"""What generated examples are worth: to a classifier that never saw the generator, and in its features."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metarun.algorithms.metric.learner import EmbeddingLearner
from metarun.algorithms.metric.protonet import Prototypes, prototypes
from metarun.algorithms.metric.transductive import Inductive
from metarun.engine.step import Engine
from metarun.errors import require
from metarun.kernels.bfloat16 import bfloat16_disabled
from metarun.models.conv4 import Conv4
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.tasks.fewshot import FewShot
from metarun.tasks.files import cached
from metarun.tasks.rng import forked_rng
from metarun.tasks.vision.generation import SampleEvaluator
from metarun.types import Positive, Rate

log = logging.getLogger("metarun")


class Judge(SampleEvaluator):
    """A prototypical network (Snell et al. 2017, arXiv:1703.05175) of its own, and what it makes of samples.

    It is Conv-4 of ``width``, trained on ``episodes`` episodes of real examples of the meta-train classes, with ``way``
    classes, ``shot`` support and ``query`` query examples of each, by Adam at ``lr`` halved every quarter of them. That
    depends on the data alone, not on the run's seed or learner, and is kept in the cache.

    Of a task's real query examples, one half of each class is *known* and the other *held out*; as many samples are
    made as are held out, and both are judged in the same way, so that ``real_accuracy`` and its like say what a perfect
    generator would get. In the features:

    - ``accuracy``: nearest mean of the known examples' classes. One in ``way`` of the task by chance;
    - ``precision`` and ``recall``: of :func:`precision_recall`, against the known examples of all classes;
    - ``diversity``: mean distance between two samples of a class, over that of two known examples of it;
    - ``novelty``: mean distance to the nearest support example of the class, over that of the known examples of it.
    """

    def __init__(
        self, *, width: Positive, episodes: Positive, way: Positive, shot: Positive, query: Positive, lr: Rate,
        neighbours: Positive,
    ) -> None:  # fmt: skip
        self.keys = {"width": width, "episodes": episodes, "way": way, "shot": shot, "query": query, "lr": lr}
        self.width, self.episodes, self.lr, self.neighbours = width, episodes, lr, neighbours
        self.shape = EpisodeShape(way, shot, query)
        self.images: FewShot | None = None
        self.embedding: nn.Module | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Judge:
        return self  # nothing in it changes

    def of(self, images: FewShot) -> Judge:
        """Learn from ``images``, when first asked."""
        self.images = images
        images.check("train", self.shape)
        return self

    def __call__(self, learner: Callable[[Tensor], Tensor], batch: TaskBatch) -> dict[str, Tensor]:
        """Of the samples that ``learner``, adapted to ``batch.support``, makes: each metric as [T]."""
        known, held_out = (self.embedded(part) for part in halves(batch.query))
        samples = Labelled(held_out.x, self.features(learner(held_out.x)), held_out.way)
        support = self.embedded(batch.support)
        real = self.metrics(held_out, known, support)
        return {**self.metrics(samples, known, support), **{f"real_{name}": value for name, value in real.items()}}

    def metrics(self, samples: Labelled, known: Labelled, support: Labelled) -> dict[str, Tensor]:
        """Of features y [T, N, F] of classes x [T, N]."""
        centres = prototypes(known.y, known.x, known.way)
        guess = torch.cdist(samples.y, centres).argmin(-1)
        precision, recall = precision_recall(known.y, samples.y, self.neighbours)
        return {
            "accuracy": (guess == samples.x).to(samples.y.dtype).mean(1),
            "precision": precision,
            "recall": recall,
            "diversity": spread(samples) / spread(known),
            "novelty": nearest(samples, support) / nearest(known, support),
        }

    def embedded(self, images: Labelled) -> Labelled:
        return Labelled(images.x, self.features(images.y), images.way)

    def features(self, images: Tensor) -> Tensor:
        """[T, N, C, H, W] -> [T, N, F]."""
        if self.embedding is None:
            require(self.images is not None, "the judge was given no images to learn from")
            assert self.images is not None
            with forked_rng(images.device, 0):  # the run's random numbers must not depend on the cache
                self.embedding = self.learned(self.images)
        self.embedding.to(images)
        with torch.no_grad(), bfloat16_disabled():  # the judge's, whatever the learner's compute in
            return self.embedding(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def learned(self, images: FewShot) -> nn.Module:
        """The embedding, from the cache if it is there."""
        images = copy(images)
        images.seed = 0
        data, dtype = images.data, torch.get_default_dtype()
        checksum = zlib.crc32(data.offsets.tobytes(), zlib.crc32(data.x.cpu().numpy().tobytes()))
        key = {**self.keys, "protocol": images.protocol(), "data": checksum, "dtype": str(dtype), "version": 1}
        key["train"] = zlib.crc32(images.classes["train"].tobytes())
        spec = Spec("classification", images.modality, images.spec.input_shape, self.shape.way)
        model = Conv4(spec, width=self.width, depth=4, downsample="pool", halvings=None, reduce="flatten",
                      norm_scale=True)  # fmt: skip

        def train() -> dict[str, np.ndarray]:
            self._train(model.to(images.device), spec, images)
            return {name: value.cpu().numpy() for name, value in model.state_dict().items()}

        stored = cached("judge", key, train)
        model.load_state_dict({name: torch.from_numpy(value) for name, value in stored.items()})
        return model.eval().requires_grad_(False)

    def _train(self, model: nn.Module, spec: Spec, images: FewShot) -> None:
        log.info("a judge of samples learns from %d episodes of real examples; it is kept", self.episodes)
        head = Prototypes(distance="euclidean", scale=1.0, learn_scale=False, features="none", refine=Inductive())
        learner = EmbeddingLearner(
            model, spec, head=head, train_way=None, train_shot=None, train_query=None, norm="running",
            outer_lr=self.lr, halve_every=max(1, self.episodes // 4),
        )  # fmt: skip
        learner.to(images.device)
        engine = Engine(learner)
        with torch.enable_grad(), bfloat16_disabled():
            for episode in range(self.episodes):
                engine.meta_step(images.batch("train", [episode], self.shape), episode)

    def protocol(self) -> dict[str, Any]:
        return {"judge": f"prototypical network, conv4, {self.keys}", "neighbours": self.neighbours}


def halves(query: Labelled) -> tuple[Labelled, Labelled]:
    """The first and second half of each class's examples, which are sorted by class."""
    each = query.x.shape[1] // query.way
    first = (torch.arange(query.x.shape[1], device=query.x.device) % each) < each // 2
    return query.map(lambda values: values[:, first]), query.map(lambda values: values[:, ~first])


def precision_recall(real: Tensor, made: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991, equations 1 and 2): [T] each.

    Of features ``real`` [T, N, F] and ``made`` [T, M, F]. A point lies in the manifold of a set where it is no farther
    from one of its points than that point's ``neighbours``-th nearest in the set. Precision is the part of ``made`` in
    the manifold of ``real``, recall the part of ``real`` in that of ``made``.
    """
    between = distances(real, made)

    def radius(points: Tensor) -> Tensor:
        require(
            points.shape[1] > neighbours,
            f"task.judge.neighbours={neighbours} needs more than that many examples, and there are {points.shape[1]}",
        )
        apart = distances(points, points)
        apart.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # no point is its own neighbour
        return apart.kthvalue(neighbours, -1).values

    inside_real = (between <= radius(real)[:, :, None]).any(1)
    inside_made = (between <= radius(made)[:, None, :]).any(2)
    return inside_real.to(real.dtype).mean(1), inside_made.to(real.dtype).mean(1)


def spread(examples: Labelled) -> Tensor:
    """Mean distance between two examples of one class, [T]: of features y [T, N, F] of classes x [T, N]."""
    same = (examples.x[:, :, None] == examples.x[:, None]).to(examples.y.dtype)
    same = same - torch.eye(same.shape[1], dtype=same.dtype, device=same.device)
    return (distances(examples.y, examples.y) * same).sum((1, 2)) / same.sum((1, 2))


def nearest(examples: Labelled, others: Labelled) -> Tensor:
    """Mean distance from an example to the nearest of ``others`` of its class, [T]."""
    apart = distances(examples.y, others.y).masked_fill(examples.x[:, :, None] != others.x[:, None], torch.inf)
    return apart.min(2).values.mean(1)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean, [T, N, M]; found by differences, so that those of equal points are zero."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
