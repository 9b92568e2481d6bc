"""Baselines without episodes: a classifier of all base classes, whose embedding then serves every new task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.base import Metrics
from metarun.algorithms.metric.head import Head, Similarity
from metarun.algorithms.metric.learner import EmbeddingLearner
from metarun.algorithms.supervised import Adapted
from metarun.errors import require
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.types import Fraction, NonNegative, NormPolicy, Positive, Rate

Layer = Literal["linear", "cosine"]


class BaseClassifier(EmbeddingLearner):
    """Learns to tell all classes of meta-training apart; on a new task the embedding stays and a ``head`` answers.

    Baseline and Baseline++ (Chen et al. 2019, arXiv:1904.04232, section 3.2) with the head :class:`FineTuned`;
    SimpleShot (Wang et al. 2019, arXiv:1911.04623) with the nearest class mean. ``classifier`` of the base classes:
    ``linear``, with offsets, or ``cosine`` to a vector of each class, times ``scale``.

    A batch holds ``train_shot`` examples of each of ``train_way`` classes (at most all), labelled by their numbers
    among the base classes (:class:`~metarun.tasks.episode.EpisodeShape`, ``named``); papers draw it from all examples.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification",)

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        head: Head,
        classifier: Layer,
        scale: Rate,
        train_way: Positive,
        train_shot: Positive,
        norm: NormPolicy,
        outer_lr: Rate,
        halve_every: Positive | None,
    ) -> None:
        super(EmbeddingLearner, self).__init__()
        require(
            spec.train_classes > 0,
            "this algorithm classifies among all meta-train classes, and the tasks of this family have none in common "
            "(spec.train_classes is 0)   what fits: algorithm=protonet, matching, r2d2",
        )
        self.classes_a_batch, self.examples_a_class = min(train_way, spec.train_classes), train_shot
        features = self.put_together(model, spec, head, norm)
        self.layer, self.similarity = classifier, Similarity("cosine", scale, False)
        self.classes = nn.Linear(features.shape[-1], spec.train_classes, bias=classifier == "linear")
        self.learn_with(outer_lr, halve_every)

    def train_shape(self, shape: EpisodeShape | None) -> EpisodeShape | None:
        batch = {"way": self.classes_a_batch, "shot": self.examples_a_class, "query": 0}
        return shape and replace(shape.changed(**batch), named=True, unknown=0)

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        features, y = self.read(batch.support.x.flatten(0, 1)), batch.support.y.flatten()
        if self.head.observes:
            self.head.observe(features.detach())
        linear = self.layer == "linear"
        logits = self.classes(features) if linear else self.similarity(features, self.classes.weight)
        loss = F.cross_entropy(logits, y)
        return loss, {"accuracy": (logits.argmax(-1) == y).to(loss.dtype).mean(), "loss": loss.detach()}

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "base_classes": self.spec.train_classes}


class FineTuned(Head):
    """A new classifier, trained on the features of each task's support set (the same paper, section 3.2).

    ``classifier`` and ``scale`` as in :class:`BaseClassifier`; it starts as torch's linear layers do. ``epochs`` of
    stochastic gradient descent over the support set in a new order each, ``batch`` examples a step (null: all), with
    ``lr``, ``momentum``, ``dampening`` and ``weight_decay`` as in torch. Where features have gradients (in episodic
    meta-training), they flow through the steps.
    """

    def __init__(
        self,
        *,
        classifier: Layer,
        scale: Rate,
        epochs: Positive,
        batch: Positive | None,
        lr: Rate,
        momentum: Fraction,
        dampening: Fraction,
        weight_decay: NonNegative,
    ) -> None:
        super().__init__()
        self.classifier, self.similarity = classifier, Similarity("cosine", scale, False)
        self.epochs, self.batch, self.lr = epochs, batch, lr
        self.momentum, self.dampening, self.weight_decay = momentum, dampening, weight_decay

    def fit(self, support: Labelled) -> Adapted:
        x, (tasks, examples, width) = support.x, support.x.shape
        size = min(self.batch or examples, examples)
        rows = torch.arange(tasks, device=x.device)[:, None]
        bound = width**-0.5
        weight, bias = (torch.empty(tasks, n, device=x.device, dtype=x.dtype).uniform_(-bound, bound)
                        for n in (support.way * width, support.way))  # fmt: skip
        values = [weight.view(tasks, support.way, width), bias] if self.classifier == "linear" else [
            weight.view(tasks, support.way, width)]  # fmt: skip
        velocity: list[Tensor] | None = None
        through = x.requires_grad and torch.is_grad_enabled()
        with torch.enable_grad():
            values = [v.requires_grad_() for v in values]
            for _ in range(self.epochs):
                order = torch.rand(tasks, examples, device=x.device).argsort(-1)
                for first in range(0, examples, size):
                    chosen = order[:, first : first + size]
                    logits, y = self.logits(x[rows, chosen], values), support.y[rows, chosen]
                    loss = tasks * F.cross_entropy(logits.flatten(0, 1), y.flatten())  # each task's own mean, added up
                    gradients = torch.autograd.grad(loss, values, create_graph=through)
                    pushed = [g + self.weight_decay * v for g, v in zip(gradients, values, strict=True)]
                    velocity = pushed if velocity is None else [
                        self.momentum * old + (1 - self.dampening) * new
                        for old, new in zip(velocity, pushed, strict=True)]  # fmt: skip
                    values = [v - self.lr * u for v, u in zip(values, velocity, strict=True)]
                    if not through:
                        values = [v.detach().requires_grad_() for v in values]
        fitted = values if through else [v.detach() for v in values]
        return lambda query: self.logits(query, fitted)

    def logits(self, x: Tensor, values: list[Tensor]) -> Tensor:
        """[T, N, F] -> [T, N, way], by weights [T, way, F] and, of a linear layer, offsets [T, way]."""
        if self.classifier == "cosine":
            return self.similarity(x, values[0])
        return x @ values[0].transpose(1, 2) + values[1][:, None]

    def extra_repr(self) -> str:
        return f"{self.classifier}, epochs={self.epochs}, batch={self.batch}"

    def protocol(self) -> dict[str, Any]:
        return {"head": f"{self.classifier}, fine-tuned for {self.epochs} epochs"}
