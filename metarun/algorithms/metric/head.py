"""Heads: the exchangeable part of a metric learner, which classifies embedded queries by embedded support sets."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.supervised import Adapted, prediction_metrics
from metarun.errors import require
from metarun.tasks.episode import Labelled, Spec
from metarun.types import Distance, Rate

WIDEST = 4096
"""Features for which a head may learn square matrices."""


class Head(nn.Module):
    """The base class of heads: a predictor of embedded queries, fitted to embedded support sets of T tasks.

    A subclass implements :meth:`fit`. Learned parameters are ``nn.Parameter``, made in the constructor or in
    :meth:`prepare`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification",)
    maps: ClassVar[bool] = False
    """True if it reads feature maps [channels, height, width] of models that have them, instead of vectors."""
    needs_balanced: bool = False
    """True if :meth:`loss` needs as many examples of each class as of any other."""
    has_prototypes: ClassVar[bool] = False
    """True if :meth:`distance` is implemented."""
    observes: bool = False
    """True if :meth:`observe` has an effect."""

    def prepare(self, features: tuple[int, ...], spec: Spec) -> None:
        """Called once before training.

        Args:
            features: Shape of one embedded example: (F,), or (channels, height, width) if :attr:`maps`.
            spec: Description of the task family.
        """
        self.spec = spec

    def observe(self, features: Tensor) -> None:
        """Called at each step of meta-training, for heads that keep statistics in buffers (:attr:`observes`).

        Args:
            features: Embedded examples [N, F] or [N, channels, height, width].
        """

    @property
    def has_observed(self) -> bool:
        """True unless it keeps statistics and none of them has been taken yet."""
        return True

    def forget(self) -> None:
        """Forget the statistics: :meth:`observe` begins anew."""

    def fit(self, support: Labelled) -> Adapted:
        """Fit to support sets.

        Args:
            support: Embedded support sets: x [T, N, F] or [T, N, channels, height, width], y [T, N] or [T, N, D].

        Returns:
            A function of embedded queries [T, Nq, ...] to logits [T, Nq, way], or to values [T, Nq, D].
        """
        raise NotImplementedError

    def distance(self, support: Labelled) -> Adapted:
        """Return the distance of queries to the nearest prototype of the support set.

        Args:
            support: Embedded support sets, as for :meth:`fit`.

        Returns:
            A function of embedded queries [T, Nq, ...] to distances [T, Nq].
        """
        raise NotImplementedError

    def loss(self, support: Labelled, query: Labelled, prediction: Tensor) -> Tensor:
        """Return the loss of meta-training: by default the mean cross-entropy, or the mean squared error.

        Args:
            support: Embedded support sets.
            query: Embedded query sets.
            prediction: Predictions of :meth:`fit` for the queries, [T, Nq, outputs].

        Returns:
            The loss [].
        """
        metrics = prediction_metrics(self.spec, prediction, query.y)
        return metrics["mse" if self.spec.kind == "regression" else "loss"].mean()

    def protocol(self) -> dict[str, Any]:
        """Return the facts needed to compare results with others, as plain values."""
        return {}


class Similarity(nn.Module):
    """Similarity of two vectors as a logit: minus the squared Euclidean distance, or the cosine, times a scale.

    It maps a [..., N, F] and b [..., M, F] to [..., N, M]. The scale is a constant, or it is learned by its logarithm,
    which keeps it positive.
    """

    def __init__(self, distance: Distance, scale: Rate, learn_scale: bool) -> None:
        super().__init__()
        self.distance, self.start = distance, scale
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log()) if learn_scale else None

    @property
    def scale(self) -> Tensor | float:
        return self.start if self.log_scale is None else self.log_scale.exp()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the logits. |a|^2 is left out, because it is the same for all of ``b`` and cancels in a softmax."""
        if self.distance == "cosine":
            return self.scale * (F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(-1, -2))
        near = 2 * a @ b.transpose(-1, -2) - b.square().sum(-1)[..., None, :]
        return near if self.log_scale is None and self.start == 1 else self.scale * near

    def nearest(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance of each of a [..., N, F] to the nearest of b [..., M, F], [..., N].

        It is the squared Euclidean distance, or 1 minus the cosine. The scale has no effect.
        """
        if self.distance == "cosine":
            return 1 - (F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(-1, -2)).amax(-1)
        return a.square().sum(-1) - (2 * a @ b.transpose(-1, -2) - b.square().sum(-1)[..., None, :]).amax(-1)

    def extra_repr(self) -> str:
        return f"{self.distance}, scale={self.start}"

    def protocol(self) -> dict[str, Any]:
        return {"distance": "squared Euclidean" if self.distance == "euclidean" else "cosine"}


def require_narrow(features: tuple[int, ...], what: str) -> int:
    """Return the number of features; raises :class:`UserError` if square matrices of this size need too much memory."""
    (width,) = features
    require(
        width <= WIDEST,
        f"features of {width} numbers are too wide for {what}, whose matrices are as large as their square "
        f"(at most {WIDEST}); use a model with fewer, or another algorithm",
    )
    return width


def membership(y: Tensor, way: int, dtype: torch.dtype) -> Tensor:
    """Return class membership [T, way, N], 1 or 0, for labels [T, N]."""
    # F.one_hot reads its input back from the device to check it.
    return (y[:, None] == torch.arange(way, device=y.device)[:, None]).to(dtype)
