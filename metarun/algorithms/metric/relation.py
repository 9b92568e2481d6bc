"""Relation Networks: a small network scores the similarity of a query and a class."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.metric.head import Head, membership
from metarun.algorithms.supervised import Adapted
from metarun.models.norm import BatchNorm
from metarun.tasks.episode import Labelled, Spec
from metarun.types import Positive


class Relation(Head):
    """A learned comparison of feature maps (Sung et al. 2018, arXiv:1711.06025, equations 1-2, figure 2).

    A class's map is the sum of its support examples'. Map and query map, one upon the other, go through two blocks of
    convolution (``width`` filters), batch norm, ReLU and halving by max pooling (left out where the map is one pixel
    wide), then through ``hidden`` units with a ReLU to one number. A model without maps gives vectors: there a linear
    layer with a ReLU, ``width`` wide, stands for the two blocks (as in the paper's zero-shot network).

    ``objective``: ``mse`` of the sigmoid of that number against 1 for the right class and 0 for others (as printed),
    or ``cross_entropy`` of the numbers over classes. Batch norm's statistics are those of all pairs of one task.
    """

    maps: ClassVar[bool] = True

    def __init__(self, *, width: Positive, hidden: Positive, objective: Literal["mse", "cross_entropy"]) -> None:
        super().__init__()
        self.width, self.hidden, self.objective = width, hidden, objective

    def prepare(self, features: tuple[int, ...], spec: Spec) -> None:
        super().prepare(features, spec)
        channels, *size = features
        # The first layer's weights on the class's part and on the query's; see score().
        self.on_class: nn.Module
        self.on_query: nn.Module
        if size:
            self.on_class = nn.Conv2d(channels, self.width, 3, padding=1, bias=False)
            self.on_query = nn.Conv2d(channels, self.width, 3, padding=1, bias=False)
            self.first, self.second = BatchNorm(self.width), BatchNorm(self.width)
            self.conv = nn.Conv2d(self.width, self.width, 3, padding=1, bias=False)
            for _ in range(2):
                size = size if min(size) < 2 else [n // 2 for n in size]
        else:
            self.on_class = nn.Linear(channels, self.width)
            self.on_query = nn.Linear(channels, self.width, bias=False)
        area = size[0] * size[1] if size else 1
        self.judge = nn.Sequential(nn.Linear(self.width * area, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 1))

    def fit(self, support: Labelled) -> Adapted:
        x = support.x
        member = membership(support.y, support.way, x.dtype)
        classes = (member @ x.flatten(2)).unflatten(2, x.shape[2:])
        return lambda query: torch.stack([self.score(c, q) for c, q in zip(classes, query, strict=True)])

    def score(self, classes: Tensor, query: Tensor) -> Tensor:
        """Relation scores of one task: [way, ...] and [Nq, ...] -> [Nq, way]."""
        # A linear map of two maps one upon the other is the sum of linear maps of each: found once for each map, not
        # for each pair.
        pairs = (self.on_query(query)[:, None] + self.on_class(classes)).flatten(0, 1)
        if pairs.dim() == 4:
            pairs = halved(torch.relu(self.first(pairs)))
            pairs = halved(torch.relu(self.second(self.conv(pairs))))
        else:
            pairs = torch.relu(pairs)
        return self.judge(pairs.flatten(1)).view(len(query), len(classes))

    def loss(self, support: Labelled, query: Labelled, prediction: Tensor) -> Tensor:
        if self.objective == "cross_entropy":
            return super().loss(support, query, prediction)
        right = membership(query.y, query.way, prediction.dtype).transpose(1, 2)
        return F.mse_loss(prediction.sigmoid(), right)

    def extra_repr(self) -> str:
        return f"objective={self.objective}"

    def protocol(self) -> dict[str, Any]:
        return {"objective": self.objective}


def halved(x: Tensor) -> Tensor:
    """Maxima of 2 x 2, unless the map is one pixel wide."""
    return x if min(x.shape[2:]) < 2 else F.max_pool2d(x, 2)
