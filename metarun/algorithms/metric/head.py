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
    """From embedded support sets to a predictor of embedded queries, batched over tasks.

    What it learns are ``nn.Parameter``, made in the constructor or in :meth:`prepare`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification",)
    maps: ClassVar[bool] = False
    """True if it reads feature maps [channels, height, width] rather than vectors, where the model has them."""
    observes: bool = False
    """True if :meth:`observe` has an effect."""

    def prepare(self, features: tuple[int, ...], spec: Spec) -> None:
        """Called once, with the shape of one embedded example."""
        self.spec = spec

    def observe(self, features: Tensor) -> None:
        """Called in meta-training with embedded examples [N, ...]: statistics may be kept in buffers."""

    def fit(self, support: Labelled) -> Adapted:
        """From support features [T, N, ...], labelled, to a map of query features [T, Nq, ...] to predictions."""
        raise NotImplementedError

    def loss(self, support: Labelled, query: Labelled, prediction: Tensor) -> Tensor:
        """Loss of meta-training [], from features and the predictions of :meth:`fit` for the queries."""
        metrics = prediction_metrics(self.spec, prediction, query.y)
        return metrics["mse" if self.spec.kind == "regression" else "loss"].mean()

    def protocol(self) -> dict[str, Any]:
        """Return the facts that are needed to compare results with others."""
        return {}


class Similarity(nn.Module):
    """Similarity of two vectors as a logit: minus the squared Euclidean distance, or the cosine, times a scale.

    The scale is a constant, or learned from there (as its logarithm, so that it stays positive).
    ``a`` [..., N, F], ``b`` [..., M, F] -> [..., N, M].
    """

    def __init__(self, distance: Distance, scale: Rate, learn_scale: bool) -> None:
        super().__init__()
        self.distance, self.start = distance, scale
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log()) if learn_scale else None

    @property
    def scale(self) -> Tensor | float:
        return self.start if self.log_scale is None else self.log_scale.exp()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Without |a|^2, which is the same for all of ``b`` and falls out of a softmax."""
        if self.distance == "cosine":
            return self.scale * (F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(-1, -2))
        near = 2 * a @ b.transpose(-1, -2) - b.square().sum(-1)[..., None, :]
        return near if self.log_scale is None and self.start == 1 else self.scale * near

    def extra_repr(self) -> str:
        return f"{self.distance}, scale={self.start}"

    def protocol(self) -> dict[str, Any]:
        return {"distance": "squared Euclidean" if self.distance == "euclidean" else "cosine"}


def require_narrow(features: tuple[int, ...], what: str) -> int:
    """The width of the features, refused where square matrices of it do not fit into memory."""
    (width,) = features
    require(
        width <= WIDEST,
        f"features of {width} numbers are too wide for {what}, whose matrices are as large as their square "
        f"(at most {WIDEST}); use a model with fewer, or another algorithm",
    )
    return width


def membership(y: Tensor, way: int, dtype: torch.dtype) -> Tensor:
    """Which example is of which class: labels [T, N] -> ones and zeros [T, way, N]."""
    # F.one_hot reads its input back from the device to check it.
    return (y[:, None] == torch.arange(way, device=y.device)[:, None]).to(dtype)
