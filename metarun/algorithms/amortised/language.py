"""Base classes, loss and metrics of learners of formal languages from example strings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algorithms.base import Metrics
from metarun.algorithms.supervised import Adapted, SupervisedAlgorithm
from metarun.algorithms.untrained import Untrained
from metarun.tasks.episode import Labelled, TaskBatch

Fit = Callable[[Tensor], Tensor]


class LanguageLearner(SupervisedAlgorithm):
    """The base class of learners that predict the next symbol at every position of strings.

    An adapted learner maps strings [T, N, L] to log-probabilities [T, N, L, symbols]. A prediction depends on earlier
    positions only. Learners are evaluated after each number of support strings, from 0 to all.
    """

    kinds: ClassVar[tuple[str, ...]] = ("sequence",)

    def query_metrics(self, learner: Adapted, query: Labelled) -> Metrics:
        return string_metrics(learner(query.x), query)


class LanguageBaseline(Untrained, LanguageLearner):
    """The base class of language baselines that are not meta-trained. A subclass implements :meth:`fit`."""

    @abstractmethod
    def fit(self, x: Tensor, y: Tensor) -> Fit:
        """Fit to N >= 0 strings of each task.

        Args:
            x: Strings [T, N, L].
            y: The next symbol at each of their positions, [T, N, L].

        Returns:
            A function of strings [T, M, L] to log-probabilities of their next symbols, [T, M, L, symbols].
        """

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
    """Return the cross-entropy of ``prediction`` [T, N, L, symbols] at the positions of ``y`` [T, N, L] with a symbol.

    It is the mean over tasks of each task's mean, so that the loss of a meta-batch is the mean over its parts.
    """
    each = F.cross_entropy(prediction.flatten(0, 2), y.flatten(), ignore_index=-1, reduction="none").view_as(y)
    return (each.sum((1, 2)) / (y >= 0).sum((1, 2))).mean()


def string_metrics(prediction: Tensor, query: Labelled) -> Metrics:
    """Return metrics of each task, [T], as means over the positions of its strings.

    As in Akyürek et al. 2024 (arXiv:2401.12973): ``accuracy`` is the frequency with which the most likely symbol may
    follow, ``tvd`` the total variation distance between prediction q and truth p, and ``loss`` the cross-entropy
    -sum p log q. Where the true distribution is unknown, p is the symbol that follows.
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
    """Return a number for the last ``order`` symbols at each position of strings ``x`` [..., L]; equal for equal ones.

    Strings are padded at the left with ``beginning``, the second largest number of a symbol.
    """
    code, base = torch.zeros_like(x), beginning + 2
    for back in range(order):
        code = code * base + F.pad(x, (back, 0), value=beginning)[..., : x.shape[-1]]
    return code
