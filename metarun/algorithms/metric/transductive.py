"""Transductive refinement: the queries of an episode together improve the prototypes of its support set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metarun.algorithms.metric.head import Similarity, membership
from metarun.tasks.episode import Labelled
from metarun.types import NonNegative, Positive


class Refinement(nn.Module):
    """Logits [T, Nq, way] of query features [T, Nq, F] from prototypes [T, way, F] and the support set's features."""

    def forward(self, similarity: Similarity, support: Labelled, centres: Tensor, query: Tensor) -> Tensor:
        raise NotImplementedError

    def protocol(self) -> dict[str, Any]:
        return {}


class Inductive(Refinement):
    """No refinement: each query is classified by itself."""

    def forward(self, similarity: Similarity, support: Labelled, centres: Tensor, query: Tensor) -> Tensor:
        return similarity(query, centres)


class SoftKMeans(Refinement):
    """Soft k-means that starts at the prototypes (Ren et al. 2018, arXiv:1803.00676, equations 3-4).

    Each of ``steps`` times, a query belongs to each class by the softmax of its similarities, and a prototype becomes
    the mean of its class's support examples (weight 1) and of all queries, weighed by that. In the paper the
    unlabelled examples are a set of their own; here they are the queries, so that inference is transductive.
    """

    def __init__(self, *, steps: Positive) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, similarity: Similarity, support: Labelled, centres: Tensor, query: Tensor) -> Tensor:
        member = membership(support.y, support.way, query.dtype)
        total, count = member @ support.x, member.sum(-1, keepdim=True)
        for _ in range(self.steps):
            share = similarity(query, centres).softmax(-1).transpose(1, 2)
            centres = (total + share @ query) / (count + share.sum(-1, keepdim=True))
        return similarity(query, centres)

    def extra_repr(self) -> str:
        return f"steps={self.steps}"

    def protocol(self) -> dict[str, Any]:
        return {"inference": f"transductive: soft k-means, {self.steps} steps"}


class Laplacian(Refinement):
    """Queries near each other should be of one class (LaplacianShot: Ziko et al. 2020, arXiv:2006.15486).

    Minimises, over soft assignments y_q, the sum of y_q . a_q, with a_q the distances to the prototypes, and of
    ``weight`` / 2 times w(q, p) |y_q - y_p|^2, where w is 1 if p is among the ``neighbours`` nearest queries of q and
    else 0 (equation 4). The bound's updates (equation 12), ``steps`` times:

        y_q <- softmax(-a_q + weight * sum over p of w(q, p) y_p),   from y_q = softmax(-a_q)

    The logits are those of the last update. Neighbours are by Euclidean distance of the features.
    """

    def __init__(self, *, weight: NonNegative, neighbours: Positive, steps: Positive) -> None:
        super().__init__()
        self.weight, self.neighbours, self.steps = weight, neighbours, steps

    def forward(self, similarity: Similarity, support: Labelled, centres: Tensor, query: Tensor) -> Tensor:
        near = self.graph(query.detach())
        alone = logits = similarity(query, centres)
        for _ in range(self.steps):
            logits = alone + self.weight * (near @ logits.softmax(-1))
        return logits

    def graph(self, query: Tensor) -> Tensor:
        """w [T, Nq, Nq]."""
        square = query.square().sum(-1)
        distance = square[:, :, None] + square[:, None] - 2 * query @ query.transpose(1, 2)
        itself = torch.eye(query.shape[1], dtype=torch.bool, device=query.device)
        distance = distance.masked_fill(itself, float("inf"))
        nearest = distance.topk(min(self.neighbours, query.shape[1] - 1), largest=False).indices
        return torch.zeros_like(distance).scatter(-1, nearest, 1.0)

    def extra_repr(self) -> str:
        return f"weight={self.weight}, neighbours={self.neighbours}, steps={self.steps}"

    def protocol(self) -> dict[str, Any]:
        how = f"weight {self.weight}, {self.neighbours} neighbours, {self.steps} steps"
        return {"inference": f"transductive: Laplacian, {how}"}
