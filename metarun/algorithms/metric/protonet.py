"""Prototypical Networks: classify by the distance to the mean embedding of each class."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algorithms.metric.head import Head, Similarity, membership
from metarun.algorithms.metric.transductive import Refinement
from metarun.algorithms.supervised import Adapted
from metarun.errors import require
from metarun.tasks.episode import Labelled, Spec
from metarun.types import Distance, Rate

SMALL = 1e-6
"""Number that is added to features before the power transform, whose slope at 0 is infinite."""


class Prototypes(Head):
    """The nearest class mean (Snell, Swersky & Zemel 2017, arXiv:1703.05175, equations 1-2).

    ``distance`` is ``euclidean`` (squared, as in the paper) or ``cosine``. It is multiplied by ``scale``, which is the
    initial value of a learned factor with ``learn_scale``. ``features`` are transformed first: ``none``, ``l2``
    (normalised to length 1), ``centred_l2`` (minus the mean of the base classes, then normalised), or ``power`` (square
    roots, then normalised). The first three are UN, L2N and CL2N of SimpleShot (Wang, Chao, Weinberger & van der Maaten
    2019, arXiv:1911.04623, section 3). The mean is that of the first 100 meta-training batches, then a moving average
    with weight .01. A run without iterations takes it from 100 batches too, without training. The last is the power
    transform of PT-MAP (Hu, Gripon & Pateux 2020, arXiv:2006.03806, section 3.2); negative features keep their sign.
    ``refine`` is the transductive refinement of the prototypes by the whole query set.
    """

    has_prototypes = True
    running_mean: Tensor
    running_count: Tensor

    def __init__(
        self,
        *,
        distance: Distance,
        scale: Rate,
        learn_scale: bool,
        features: Literal["none", "l2", "centred_l2", "power"],
        refine: Refinement,
    ) -> None:
        super().__init__()
        require(
            distance == "euclidean" or not refine.euclidean,
            f"algorithm.head.distance={distance}: {type(refine).__name__} needs euclidean",
        )
        self.similarity, self.features, self.refine = Similarity(distance, scale, learn_scale), features, refine
        self.observes = features == "centred_l2"

    def prepare(self, features: tuple[int, ...], spec: Spec) -> None:
        super().prepare(features, spec)
        if self.observes:
            self.register_buffer("running_mean", torch.zeros(features))
            self.register_buffer("running_count", torch.zeros(()))

    def observe(self, features: Tensor) -> None:
        if self.observes:
            self.running_count += 1
            self.running_mean.lerp_(features.mean(0), (1 / self.running_count).clamp(min=0.01))

    @property
    def has_observed(self) -> bool:
        return not self.observes or bool(self.running_count)

    def forget(self) -> None:
        if self.observes:
            self.running_count.zero_()
            self.running_mean.zero_()

    def fit(self, support: Labelled) -> Adapted:
        x = self.transformed(support.x)
        centres = prototypes(x, support.y, support.way)
        known = Labelled(x, support.y, support.way)
        return lambda q: self.refine(self.similarity, known, centres, self.transformed(q))

    def distance(self, support: Labelled) -> Adapted:
        centres = prototypes(self.transformed(support.x), support.y, support.way)
        return lambda q: self.similarity.nearest(self.transformed(q), centres)

    def transformed(self, x: Tensor) -> Tensor:
        if self.features == "none":
            return x
        if self.features == "power":
            x = x.sign() * (x.abs() + SMALL).sqrt()
        return F.normalize(x - self.running_mean if self.observes else x, dim=-1)

    def extra_repr(self) -> str:
        return f"features={self.features}"

    def protocol(self) -> dict[str, Any]:
        transformed = {} if self.features == "none" else {"features": self.features}
        return {**self.similarity.protocol(), **transformed, **self.refine.protocol()}


def prototypes(support: Tensor, y: Tensor, way: int) -> Tensor:
    """Mean support embedding a class: ``support`` [T, N, F], ``y`` [T, N] -> [T, way, F]."""
    member = membership(y, way, support.dtype)
    return member @ support / member.sum(-1, keepdim=True)
