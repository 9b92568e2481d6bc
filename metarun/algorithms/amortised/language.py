"""Shared parts of learners of languages from example strings: their metrics and a baseline."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.base import Metrics
from metarun.algorithms.supervised import Adapted, SupervisedAlgorithm
from metarun.tasks.episode import Labelled, Spec, TaskBatch

Fit = Callable[[Tensor], Tensor]


class LanguageLearner(SupervisedAlgorithm):
    """Predicts the symbol that follows, at every place of strings x [T, N, L]: log-probabilities [T, N, L, symbols].

    A prediction depends on no later place. Judged after every number of support strings, 0 to all.
    """

    kinds: ClassVar[tuple[str, ...]] = ("sequence",)

    def query_metrics(self, learner: Adapted, query: Labelled) -> Metrics:
        return judge_strings(learner(query.x), query)


class LanguageControl(LanguageLearner):
    """A rule that predicts from strings. Nothing is meta-learned, not the model either."""

    def __init__(self, model: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.model, self.spec = model.requires_grad_(False), spec
        self.optimizer = None

    @abstractmethod
    def fit(self, x: Tensor, y: Tensor) -> Fit:
        """From ``x`` and ``y`` [T, N, L], N of 0 or more: [T, M, L] -> log-probabilities [T, M, L, symbols]."""

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        loss = string_loss(self.adapt(batch.support)(batch.query.x), batch.query.y)
        return loss, {"loss": loss.detach()}

    def adapt(self, support: Labelled) -> Adapted:
        return self.fit(support.x, support.y)

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        for count in range(support.x.shape[1] + 1):
            yield self.fit(support.x[:, :count], support.y[:, :count])

    def protocol(self) -> dict[str, Any]:
        return {}


def string_loss(prediction: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of ``prediction`` [T, N, L, symbols] over the places of ``y`` [T, N, L] that have a symbol.

    A mean of each task's mean, so that the loss of a meta-batch is the mean of those of its parts.
    """
    each = F.cross_entropy(prediction.flatten(0, 2), y.flatten(), ignore_index=-1, reduction="none").view_as(y)
    return (each.sum((1, 2)) / (y >= 0).sum((1, 2))).mean()


def judge_strings(prediction: Tensor, query: Labelled) -> Metrics:
    """Metrics a task, [T], each a mean over the places of its strings (Akyürek et al. 2024, arXiv:2401.12973).

    ``accuracy``: the likeliest symbol may follow; ``tvd``: total variation distance, half the sum over symbols of
    |p - q|, between prediction and truth; ``loss``: cross-entropy, -sum p log q, with p the truth. Where no truth is
    known, p is the symbol that came.
    """
    here = query.y >= 0
    log_q = prediction.log_softmax(-1)
    p = query.truth
    if p is None:
        p = (query.y[..., None] == torch.arange(log_q.shape[-1], device=log_q.device)).to(log_q.dtype)
    likeliest = p.gather(-1, log_q.argmax(-1, keepdim=True))[..., 0] > 0
    values = {
        "tvd": (p - log_q.exp()).abs().sum(-1) / 2,
        "accuracy": likeliest.to(log_q.dtype),
        "loss": -torch.where(p > 0, p * log_q, 0).sum(-1),  # 0 log 0 is 0
    }
    return {name: torch.where(here, value, 0).sum((1, 2)) / here.sum((1, 2)) for name, value in values.items()}


def histories(x: Tensor, order: int, beginning: int) -> Tensor:
    """A number for the last ``order`` symbols at each place of strings ``x`` [..., L], equal for equal ones, [..., L].

    Before its beginning a string is nothing but ``beginning``, the largest number of a symbol but one.
    """
    code, base = torch.zeros_like(x), beginning + 2
    for back in range(order):
        code = code * base + F.pad(x, (back, 0), value=beginning)[..., : x.shape[-1]]
    return code
