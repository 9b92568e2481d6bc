"""Metric and closed-form learners: an embedding, shared by all tasks, and a head that needs no gradient steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metarun.algorithms.base import Metrics
from metarun.algorithms.metric.head import Head
from metarun.algorithms.supervised import Adapted, SupervisedAlgorithm, dry_run, prediction_metrics
from metarun.errors import require
from metarun.models.norm import BatchNorm, set_policy, statistics_from
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.types import NormPolicy, Positive, Rate


class EmbeddingLearner(SupervisedAlgorithm):
    """Metric-based meta-learning: the model embeds support and query sets, and a ``head`` classifies the embeddings.

    Model and head are trained on episodes of ``train_way`` classes with ``train_shot`` and ``train_query`` examples of
    each (``None``: as in the task) by Adam at ``outer_lr``, halved every ``halve_every`` iterations. ``norm`` is the
    normalisation policy. With ``running``, meta-training normalises by the statistics of one episode, support and
    query set together. Heads that compare feature maps need a model with a method ``maps``, from inputs to features
    [N, channels, height, width].
    """

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        head: Head,
        train_way: Positive | None,
        train_shot: Positive | None,
        train_query: Positive | None,
        norm: NormPolicy,
        outer_lr: Rate,
        halve_every: Positive | None,
    ) -> None:
        super().__init__()
        self.train_way, self.train_shot, self.train_query = train_way, train_shot, train_query
        self.put_together(model, spec, head, norm)
        self.learn_with(outer_lr, halve_every)

    def put_together(self, model: nn.Module, spec: Spec, head: Head, norm: NormPolicy) -> Tensor:
        """Take over the parts and fit the head to the model; returns the features of two examples."""
        self.model, self.spec, self.head, self.norm = model, spec, head, norm
        self.needs_balanced = head.needs_balanced
        features = dry_run(model, spec, self.read)
        head.prepare(tuple(features.shape[1:]), spec)
        require(
            norm != "support" or not any(isinstance(part, BatchNorm) for part in head.modules()),
            "algorithm.norm=support: this head normalises pairs of support and query examples, of which none is of "
            "the support set alone; use transductive, frozen or running",
        )
        set_policy(self, norm)
        return features

    @property
    def read(self) -> Callable[[Tensor], Tensor]:
        """The model, as far as the head wants it: inputs [N, ...] -> features [N, ...]."""
        return getattr(self.model, "maps", self.model) if self.head.maps else self.model

    @property
    def is_capturable(self) -> bool:
        return not self.head.observes

    @property
    def keeps_statistics(self) -> bool:
        return self.head.observes

    @property
    def has_observed(self) -> bool:
        return self.head.has_observed

    def observe(self, batches: Iterable[TaskBatch]) -> None:
        self.head.forget()
        self.eval()
        with torch.no_grad(), self.computing():
            for batch in batches:
                self.head.observe(torch.cat(self.together(batch.support.x, batch.query.x), 1).flatten(0, 1))

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        s, q = self.together(batch.support.x, batch.query.x)
        if self.head.observes:
            self.head.observe(torch.cat([s, q], 1).detach().flatten(0, 1))
        support, query = replace(batch.support, x=s), replace(batch.query, x=q)
        prediction = self.head.fit(support)(q)
        loss = self.head.loss(support, query, prediction)
        metrics = prediction_metrics(self.spec, prediction.detach(), batch.query.y)
        return loss, {**{name: value.mean() for name, value in metrics.items()}, "loss": loss.detach()}

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        yield self._on_embeddings(support, self.head.fit)

    def prototype_distance(self, support: Labelled) -> Adapted | None:
        return self._on_embeddings(support, self.head.distance) if self.head.has_prototypes else None

    def _on_embeddings(self, support: Labelled, fit: Callable[[Labelled], Adapted]) -> Adapted:
        """Return a function of inputs, given ``fit``, which fits a function of embeddings to embedded support sets."""
        if self.norm == "running":
            answer = fit(replace(support, x=self.embed(support.x)))
            return lambda x: answer(self.embed(x))

        def adapted(x: Tensor) -> Tensor:
            s, q = self.together(support.x, x)
            return fit(replace(support, x=s))(q)

        return adapted

    def embed(self, x: Tensor) -> Tensor:
        """[T, N, ...] -> [T, N, features], all tasks at once."""
        return self.read(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def together(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Both embedded, one task after another: the statistics of normalisation are each task's own."""
        embedded = []
        for s, q in zip(support.unbind(), query.unbind(), strict=True):
            with statistics_from(self.model, len(s) if self.norm == "support" else None):
                embedded.append(self.read(torch.cat([s, q])))
        return tuple(torch.stack(embedded).split([support.shape[1], query.shape[1]], dim=1))

    def protocol(self) -> dict[str, Any]:
        return {"norm": self.norm, **self.head.protocol()}
