"""Metrics of generated images, from a classifier that is trained on real images alone."""

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


class QualityClassifier(SampleEvaluator):
    """Classifier that measures the quality of generated images in its feature space.

    It is a prototypical network (Snell et al. 2017, arXiv:1703.05175) with a Conv-4 embedding, trained on real images
    of the meta-train classes. The trained classifier depends on the data alone, not on the run's seed or learner, and
    is cached.

    One half of a task's real query images of each class is *known*, the other half is *held out*. The generator makes
    as many samples as are held out. Held-out images and samples are measured in the same way, so ``real_accuracy`` and
    the other ``real_`` metrics are upper bounds that a perfect generator reaches:

    - ``accuracy``: share of samples whose nearest class mean of the known images is that of their own class;
    - ``precision`` and ``recall``: see :func:`precision_recall`, against the known images of all classes;
    - ``diversity``: mean distance between two samples of a class, divided by that between two known images of it;
    - ``novelty``: mean distance to the nearest support image of the class, divided by that of the known images.

    Args:
        width: Number of channels of the Conv-4 embedding.
        episodes: Number of training episodes.
        way: Number of classes per training episode.
        shot: Number of support images per class in training.
        query: Number of query images per class in training.
        lr: Learning rate of Adam. It is halved after each quarter of the episodes.
        neighbours: Number k of nearest neighbours for precision and recall.
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

    def __deepcopy__(self, memo: dict[int, Any]) -> QualityClassifier:
        return self  # immutable once trained

    def train_on(self, images: FewShot) -> QualityClassifier:
        """Set the images to train on. Training starts when features are first needed.

        Raises:
            UserError: The meta-train classes are too few or too small for the training episodes.
        """
        self.images = images
        images.check("train", self.shape)
        return self

    def __call__(self, learner: Callable[[Tensor], Tensor], batch: TaskBatch) -> dict[str, Tensor]:
        """Measure the samples of a generator on each task.

        Args:
            learner: Generator adapted to ``batch.support``. It maps class labels [T, N] to images [T, N, C, H, W].
            batch: Tasks with real query images.

        Returns:
            Each metric, [T].
        """
        known, held_out = (self.embed(part) for part in halves(batch.query))
        samples = Labelled(held_out.x, self.features(learner(held_out.x)), held_out.way)
        support = self.embed(batch.support)
        real = self.metrics(held_out, known, support)
        return {**self.metrics(samples, known, support), **{f"real_{name}": value for name, value in real.items()}}

    def metrics(self, samples: Labelled, known: Labelled, support: Labelled) -> dict[str, Tensor]:
        """Compute the metrics of ``samples``, all given as features y [T, N, F] of classes x [T, N]."""
        centres = prototypes(known.y, known.x, known.way)
        predicted = torch.cdist(samples.y, centres).argmin(-1)
        precision, recall = precision_recall(known.y, samples.y, self.neighbours)
        return {
            "accuracy": (predicted == samples.x).to(samples.y.dtype).mean(1),
            "precision": precision,
            "recall": recall,
            "diversity": spread(samples) / spread(known),
            "novelty": nearest(samples, support) / nearest(known, support),
        }

    def embed(self, images: Labelled) -> Labelled:
        """Replace images y [T, N, C, H, W] by their features [T, N, F]."""
        return Labelled(images.x, self.features(images.y), images.way)

    def features(self, images: Tensor) -> Tensor:
        """Return the features [T, N, F] of images [T, N, C, H, W]. Trains the classifier on the first call."""
        if self.embedding is None:
            require(self.images is not None, "task.judge has no images to train on: call train_on(images) first")
            assert self.images is not None
            with forked_rng(images.device, 0):  # a cached classifier must not change the run's random numbers
                self.embedding = self.load_or_train(self.images)
        self.embedding.to(images)
        with torch.no_grad(), bfloat16_disabled():  # the classifier does not depend on the learner's precision
            return self.embedding(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def load_or_train(self, images: FewShot) -> nn.Module:
        """Return the trained embedding from the cache, or train it and cache it."""
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
        log.info(
            "training the classifier of generated images (task.judge) on %d episodes of real images; it will be cached",
            self.episodes,
        )
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
        """Return the entries of the protocol that describe the classifier."""
        return {"judge": f"prototypical network, conv4, {self.keys}", "neighbours": self.neighbours}


def halves(query: Labelled) -> tuple[Labelled, Labelled]:
    """Split the query examples, which are sorted by class, into the first and the second half of each class."""
    each = query.x.shape[1] // query.way
    first = (torch.arange(query.x.shape[1], device=query.x.device) % each) < each // 2
    return query.map(lambda values: values[:, first]), query.map(lambda values: values[:, ~first])


def precision_recall(real: Tensor, generated: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991, equations 1 and 2).

    A point lies in the manifold of a set if it is no farther from one point of the set than that point's k-th nearest
    neighbour in the set.

    Args:
        real: Features of real images, [T, N, F].
        generated: Features of generated images, [T, M, F].
        neighbours: Number k of neighbours.

    Returns:
        Precision [T], the share of ``generated`` in the manifold of ``real``, and recall [T], the share of ``real`` in
        the manifold of ``generated``.

    Raises:
        UserError: A set has no more than ``neighbours`` points.
    """
    between = distances(real, generated)

    def radius(points: Tensor) -> Tensor:
        require(
            points.shape[1] > neighbours,
            f"task.judge.neighbours={neighbours}: must be less than the number of images, {points.shape[1]}",
        )
        apart = distances(points, points)
        apart.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # no point is its own neighbour
        return apart.kthvalue(neighbours, -1).values

    inside_real = (between <= radius(real)[:, :, None]).any(1)
    inside_generated = (between <= radius(generated)[:, None, :]).any(2)
    return inside_real.to(real.dtype).mean(1), inside_generated.to(real.dtype).mean(1)


def spread(examples: Labelled) -> Tensor:
    """Return the mean distance between two examples of one class, [T], for features y [T, N, F] of classes x [T, N]."""
    same = (examples.x[:, :, None] == examples.x[:, None]).to(examples.y.dtype)
    same = same - torch.eye(same.shape[1], dtype=same.dtype, device=same.device)
    return (distances(examples.y, examples.y) * same).sum((1, 2)) / same.sum((1, 2))


def nearest(examples: Labelled, others: Labelled) -> Tensor:
    """Return the mean distance from an example to the nearest of ``others`` of its class, [T]."""
    apart = distances(examples.y, others.y).masked_fill(examples.x[:, :, None] != others.x[:, None], torch.inf)
    return apart.min(2).values.mean(1)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Return Euclidean distances [T, N, M], computed from differences so that equal points have distance 0."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
