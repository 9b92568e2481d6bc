"""Prior-fitted networks: a model that reads a labelled table and predicts new rows in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from math import log, pi
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.amortised.sequence import encode_targets
from metarun.algorithms.base import Metrics
from metarun.algorithms.supervised import Adapted, SupervisedAlgorithm, prediction_metrics
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.types import Count, Decay, Positive, Rate

ABSENT = -1e4
"""Logit of a class that no support row has."""


class PriorFitted(SupervisedAlgorithm):
    """Prior-fitted network (Müller et al. 2022, arXiv:2112.10510; Hollmann et al. 2023, arXiv:2207.01848).

    The loss is the negative log likelihood of the query rows, so that the network approximates the posterior predictive
    distribution under the prior that the tables are drawn from. Classes without a support row get no probability.
    Predictions of classes are averaged over cyclic permutations of the labels, as the network does not treat all labels
    alike. Regression predicts a Gaussian, of targets standardised by the support rows.

    Args:
        model: Reads support and query rows together.
        spec: The task family.
        permutations: Number of permutations of the labels that predictions are averaged over.
    """

    roles: ClassVar[tuple[str, ...]] = ("in_context",)

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        permutations: Positive,
        train_shot: Positive | None,
        train_query: Positive | None,
        outer_lr: Rate,
        halve_every: Positive | None,
        decay_over: Count | None,
        decay: Decay,
    ) -> None:
        super().__init__()
        self.model, self.spec, self.permutations = model, spec, permutations
        self.train_shot, self.train_query = train_shot, train_query
        self.learn_with(outer_lr, halve_every, decay_over, decay)

    def accepts(self, shape: EpisodeShape | None) -> bool:
        return (
            shape is None
            or self.spec.kind != "classification"
            or (not shape.varied and shape.way <= self.spec.output_size)
        )

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        if self.spec.kind == "regression":
            mean, log_std = self.gaussian(batch.support, batch.query.x)
            loss = nll(mean, log_std, batch.query.y).mean()
            metrics = {"loss": loss, "mse": (mean - batch.query.y).square().mean()}
        else:
            logits = self.logits(batch.support, batch.query.x)
            loss = F.cross_entropy(logits.flatten(0, 1), batch.query.y.flatten())
            metrics = {"loss": loss, "accuracy": (logits.argmax(-1) == batch.query.y).to(logits.dtype).mean()}
        return loss, {name: value.detach() for name, value in metrics.items()}

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        if self.spec.kind == "regression":
            yield lambda query: self.gaussian(support, query)[0]
        else:
            yield lambda query: self.averaged(support, query)

    def logits(self, support: Labelled, x: Tensor) -> Tensor:
        """Return the log probabilities, up to a constant, of the classes of query rows, [T, M, K]."""
        labels = encode_targets(self.spec, support.y, x.dtype)
        there = labels.amax(1, keepdim=True) > 0
        return self.model(support.x, labels, x).masked_fill(~there, ABSENT)

    def averaged(self, support: Labelled, x: Tensor) -> Tensor:
        """Return the logarithm of probabilities [T, M, K], averaged over cyclic permutations of the labels.

        The classes of a task are 0..way-1, with a ``way`` of its own.
        """
        way = support.y.amax(1, keepdim=True) + 1
        classes = torch.arange(self.spec.output_size, device=x.device)
        predictions = []
        for shift in range(self.permutations):
            found = self.logits(Labelled(support.x, (support.y + shift) % way), x).softmax(-1)
            moved = torch.where(classes < way, (classes + shift) % way, classes)
            predictions.append(found.gather(2, moved[:, None].expand_as(found)))
        return torch.stack(predictions).mean(0).clamp(min=torch.finfo(x.dtype).tiny).log()

    def gaussian(self, support: Labelled, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the standard deviation of the targets of query rows, [T, M, D] each."""
        centre = support.y.mean(1, keepdim=True)
        scale = (support.y - centre).square().mean(1, keepdim=True).sqrt()
        scale = torch.where(scale > 0, scale, 1)
        mean, raw = self.model(support.x, (support.y - centre) / scale, x).chunk(2, -1)
        return centre + scale * mean, scale.log() + torch.log(1e-3 + F.softplus(raw))

    def query_metrics(self, learner: Adapted, query: Labelled) -> Metrics:
        predicted = learner(query.x)
        metrics = prediction_metrics(self.spec, predicted, query.y)
        return metrics if self.spec.kind == "regression" else {**metrics, "auc": auc(predicted.softmax(-1), query.y)}

    def protocol(self) -> dict[str, Any]:
        return {"norm": "support", "permutations": self.permutations}


def nll(mean: Tensor, log_std: Tensor, y: Tensor) -> Tensor:
    """Return the negative log density of Gaussians, elementwise."""
    return 0.5 * ((y - mean) / log_std.exp()).square() + log_std + 0.5 * log(2 * pi)


def auc(scores: Tensor, y: Tensor) -> Tensor:
    """Return the area under the ROC curve, one class against the rest, averaged over classes.

    Args:
        scores: Scores of the classes, [T, M, K].
        y: True classes, [T, M].

    Returns:
        The area of each task [T], averaged over the classes that some but not all of its rows have; .5 if there are
        none.
    """
    mine = y[..., None] == torch.arange(scores.shape[-1], device=y.device)
    positive = mine.sum(1)
    negative = y.shape[1] - positive
    columns = scores.transpose(1, 2).contiguous()
    ordered = columns.sort(-1).values
    # The rank of a row among all, the mean rank among equal scores.
    below, up_to = (torch.searchsorted(ordered, columns, right=right) for right in (False, True))
    ranks = (below + up_to + 1).transpose(1, 2).to(scores.dtype) / 2
    wins = (ranks * mine).sum(1) - positive * (positive + 1) / 2
    defined = (positive > 0) & (negative > 0)
    areas = torch.where(defined, wins / (positive * negative).clamp(min=1), 0)
    classes = defined.sum(-1)
    return torch.where(classes > 0, areas.sum(-1) / classes.clamp(min=1), 0.5)
