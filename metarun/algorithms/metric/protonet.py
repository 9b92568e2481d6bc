"""Prototypical Networks: classify by the squared distance to the mean embedding of each class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metarun.algorithms.base import Adapted, Metrics, SupervisedAlgorithm, judge
from metarun.models.norm import set_policy, statistics_from
from metarun.tasks.base import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.types import NormPolicy, Positive, Rate


class ProtoNet(SupervisedAlgorithm):
    """Prototypical Networks (Snell, Swersky & Zemel 2017, arXiv:1703.05175, equations 1-2).

    Meta-trains on episodes of ``train_way`` classes (more than at test makes a better embedding; the paper's
    trick) with ``train_query`` queries each, both the task's own where null. ``norm`` is the normalisation
    policy; the paper's is ``running``.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification",)

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        train_way: Positive | None,
        train_shot: Positive | None,
        train_query: Positive | None,
        norm: NormPolicy,
        outer_lr: Rate,
        halve_every: Positive | None,
    ) -> None:
        super().__init__()
        self.model, self.spec, self.norm = model, spec, norm
        self.train_way, self.train_shot, self.train_query = train_way, train_shot, train_query
        set_policy(model, norm)
        self.learn_with(outer_lr, halve_every)

    def train_shape(self, shape: EpisodeShape | None) -> EpisodeShape | None:
        return shape and shape.changed(self.train_way, self.train_shot, self.train_query)

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        way, losses, accuracies = batch.support.way, [], []
        for (sx, sy), (qx, qy) in zip(batch.support.tasks(), batch.query.tasks(), strict=True):
            rows = len(sx) if self.norm == "support" else None
            with statistics_from(self.model, rows):
                support, query = self.model(torch.cat([sx, qx])).split([len(sx), len(qx)])
            logits = classify(prototypes(support[None], sy[None], way), query[None])
            judged = judge(self.spec, logits, qy[None])
            losses.append(judged["loss"])
            accuracies.append(judged["accuracy"])
        loss = torch.cat(losses).mean()
        return loss, {"loss": loss.detach(), "accuracy": torch.cat(accuracies).mean()}

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        way = support.way
        if self.norm == "running":
            centres = prototypes(self._embed(support.x), support.y, way)
            yield lambda x: classify(centres, self._embed(x))
            return

        def adapted(x: Tensor) -> Tensor:
            logits = []
            for (sx, sy), qx in zip(support.tasks(), x, strict=True):
                rows = len(sx) if self.norm == "support" else None
                with statistics_from(self.model, rows):
                    s, q = self.model(torch.cat([sx, qx])).split([len(sx), len(qx)])
                logits.append(classify(prototypes(s[None], sy[None], way), q[None]))
            return torch.cat(logits)

        yield adapted

    def _embed(self, x: Tensor) -> Tensor:
        """[T, N, ...] -> [T, N, features], all tasks at once."""
        return self.model(x.flatten(0, 1)).view(*x.shape[:2], -1)

    def protocol(self) -> dict[str, Any]:
        return {"norm": self.norm, "distance": "squared Euclidean"}


def prototypes(support: Tensor, y: Tensor, way: int) -> Tensor:
    """Mean support embedding a class: ``support`` [T, N, F], ``y`` [T, N] -> [T, way, F]."""
    # F.one_hot reads its input back from the device to check it.
    member = (y[:, None] == torch.arange(way, device=y.device)[:, None]).to(support.dtype)
    return member @ support / member.sum(-1, keepdim=True)


def classify(centres: Tensor, query: Tensor) -> Tensor:
    """Logits [T, Nq, way]: minus the squared Euclidean distance to each prototype."""
    # |q|^2 is the same for all classes and falls out of the softmax.
    return 2 * query @ centres.transpose(1, 2) - centres.square().sum(-1)[:, None]
