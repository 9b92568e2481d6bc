"""FEAT: prototypes that know of each other, by self-attention over the set of an episode's classes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.metric.head import Head, Similarity, require_narrow
from metarun.algorithms.metric.protonet import prototypes
from metarun.algorithms.supervised import Adapted
from metarun.tasks.episode import Labelled, Spec
from metarun.types import Distance, Fraction, NonNegative, Positive, Rate


class SetToSet(Head):
    """Prototypes transformed together (Ye, Hu, Zhan & Sha 2020, arXiv:1812.03664, equations 4-7, the Transformer).

    Queries are compared with psi = LayerNorm(p + dropout(W attention(p))), the prototypes p of all classes attending to
    each other with ``heads`` heads as wide as the features. ``distance``, ``scale`` and ``learn_scale`` are those of
    that comparison (in the paper distances are divided by a temperature of 64).

    ``contrast`` weighs a second loss in meta-training: within each class, support and query examples together go
    through the same transformation, and every example should be nearest to the mean of its own class's (compared with
    the fixed scale ``contrast_scale``). It needs as many examples of each class as of any other, as episodes have.
    """

    has_prototypes = True

    def __init__(
        self,
        *,
        heads: Positive,
        dropout: Fraction,
        distance: Distance,
        scale: Rate,
        learn_scale: bool,
        contrast: NonNegative,
        contrast_scale: Rate,
    ) -> None:
        super().__init__()
        self.heads, self.contrast, self.needs_balanced = heads, contrast, contrast > 0
        self.dropout = nn.Dropout(dropout)
        self.similarity = Similarity(distance, scale, learn_scale)
        self.contrasting = Similarity(distance, contrast_scale, False)

    def prepare(self, features: tuple[int, ...], spec: Spec) -> None:
        super().prepare(features, spec)
        width = require_narrow(features, "attention over the set")
        self.asks, self.offers, self.values = (nn.Linear(width, self.heads * width, bias=False) for _ in range(3))
        for layer in (self.asks, self.offers, self.values):  # the authors' initialisation
            nn.init.normal_(layer.weight, std=width**-0.5)
        self.out, self.norm = nn.Linear(self.heads * width, width), nn.LayerNorm(width)

    def transformed(self, x: Tensor) -> Tensor:
        """Each of the sets [B, M, F]; the order within a set has no effect on any element."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.asks, self.offers, self.values))
        attention = (q @ k.transpose(-1, -2) / x.shape[-1] ** 0.5).softmax(-1)
        return self.norm(x + self.dropout(self.out((attention @ v).transpose(1, 2).flatten(2))))

    def fit(self, support: Labelled) -> Adapted:
        centres = self.transformed(prototypes(support.x, support.y, support.way))
        return lambda query: self.similarity(query, centres)

    def distance(self, support: Labelled) -> Adapted:
        centres = self.transformed(prototypes(support.x, support.y, support.way))
        return lambda query: self.similarity.nearest(query, centres)

    def loss(self, support: Labelled, query: Labelled, prediction: Tensor) -> Tensor:
        loss = super().loss(support, query, prediction)
        if not self.contrast:
            return loss
        x, y = torch.cat([support.x, query.x], 1), torch.cat([support.y, query.y], 1)
        order = y.argsort(dim=1, stable=True)
        classes = x.gather(1, order[..., None].expand_as(x)).unflatten(1, (support.way, -1))
        centres = self.transformed(classes.flatten(0, 1)).mean(1).unflatten(0, (len(x), -1))
        logits = self.contrasting(x, centres)
        return loss + self.contrast * F.cross_entropy(logits.flatten(0, 1), y.flatten())

    def extra_repr(self) -> str:
        return f"heads={self.heads}, contrast={self.contrast}"

    def protocol(self) -> dict[str, Any]:
        return self.similarity.protocol()
