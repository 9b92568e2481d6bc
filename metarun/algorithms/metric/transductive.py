"""Transductive refinement: the queries of an episode together improve the prototypes of its support set."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.metric.head import Similarity, membership
from metarun.tasks.episode import Labelled
from metarun.types import NonNegative, Positive, Rate


class Refinement(nn.Module):
    """The base class of refinements: logits [T, Nq, way] of query features [T, Nq, F] from prototypes [T, way, F] and
    the support set's features.
    """

    euclidean: ClassVar[bool] = False
    """True if the similarity must be that of the squared Euclidean distance."""

    def forward(self, similarity: Similarity, support: Labelled, centres: Tensor, query: Tensor) -> Tensor:
        raise NotImplementedError

    def protocol(self) -> dict[str, Any]:
        return {}


class Inductive(Refinement):
    """No refinement: each query is classified by itself."""

    def forward(self, similarity: Similarity, support: Labelled, centres: Tensor, query: Tensor) -> Tensor:
        return similarity(query, centres)


class Centred(Refinement):
    """Features minus the mean of the task's own, support set and queries together.

    Only the cosine depends on where the origin lies. learn2learn evaluates its pretrained classifiers in this way.
    """

    def forward(self, similarity: Similarity, support: Labelled, centres: Tensor, query: Tensor) -> Tensor:
        mean = torch.cat([support.x, query], 1).mean(1, keepdim=True)
        return similarity(query - mean, centres - mean)

    def protocol(self) -> dict[str, Any]:
        return {"inference": "transductive: centred by the mean of support set and queries"}


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


class RectifiedPrototypes(Refinement):
    """BD-CSPN: two biases of the prototypes are reduced (Liu, Song & Qin 2020, arXiv:1911.10713, section 3.2).

    Queries are shifted so that their mean is that of the support set. A prototype then becomes a weighted mean of its
    class's support examples and of the queries that are nearest to it by the cosine, at most ``confident`` of them. The
    weights are a softmax of ``sharpness`` times the cosine to the former prototype.

    Args:
        confident: Queries that each prototype takes up at most.
        sharpness: Factor of the cosines in the softmax.
    """

    def __init__(self, *, confident: Positive, sharpness: NonNegative) -> None:
        super().__init__()
        self.confident, self.sharpness = confident, sharpness
        self.cosine = Similarity("cosine", 1.0, False)

    def forward(self, similarity: Similarity, support: Labelled, centres: Tensor, query: Tensor) -> Tensor:
        query = query + support.x.mean(1, keepdim=True) - query.mean(1, keepdim=True)
        cosines = self.cosine(centres, query)  # [T, way, Nq]
        nearest = membership(cosines.argmax(1), support.way, torch.bool)
        candidates = cosines.detach().masked_fill(~nearest, float("-inf"))
        chosen = candidates.topk(min(self.confident, query.shape[1]), dim=-1).indices
        taken = torch.zeros_like(nearest).scatter(-1, chosen, True) & nearest
        member = torch.cat([membership(support.y, support.way, torch.bool), taken], -1)
        logits = self.sharpness * torch.cat([self.cosine(centres, support.x), cosines], -1)
        weights = logits.masked_fill(~member, float("-inf")).softmax(-1)
        return similarity(query, weights @ torch.cat([support.x, query], 1))

    def extra_repr(self) -> str:
        return f"confident={self.confident}, sharpness={self.sharpness}"

    def protocol(self) -> dict[str, Any]:
        return {"inference": f"transductive: prototype rectification, {self.confident} queries a class"}


class MutualInformation(Refinement):
    """TIM by alternating directions (Boudiaf et al. 2020, arXiv:2008.11297, equations 3 and 6-8).

    Class vectors start at the prototypes. They minimise ``support_weight`` times the cross-entropy on the support set,
    minus the entropy of the mean prediction on the queries, plus ``conditional_weight`` times the mean entropy of the
    predictions. Auxiliary assignments of the queries and the vectors are updated in turn, ``steps`` times. Queries are
    taken to be balanced over the classes.

    Args:
        support_weight: Weight of the cross-entropy, the paper's lambda.
        conditional_weight: Weight of the conditional entropy, the paper's alpha.
        steps: Number of updates.
    """

    euclidean = True

    def __init__(self, *, support_weight: Rate, conditional_weight: NonNegative, steps: Positive) -> None:
        super().__init__()
        self.support_weight, self.conditional_weight, self.steps = support_weight, conditional_weight, steps

    def forward(self, similarity: Similarity, support: Labelled, centres: Tensor, query: Tensor) -> Tensor:
        member, known = membership(support.y, support.way, query.dtype), support.x.shape[1]
        x = torch.cat([support.x, query], 1)
        inner = x @ x.transpose(1, 2)
        vectors = F.pad(member / member.sum(-1, keepdim=True), (0, query.shape[1]))
        # Each example's weight in the objective, divided by 1 + conditional_weight.
        share = x.new_full((x.shape[1],), known / query.shape[1])
        share[:known] = self.support_weight / (1 + self.conditional_weight)
        for _ in range(self.steps):
            predicted = nearness(similarity, inner, vectors).softmax(1)
            powers = predicted[..., known:] ** (1 + self.conditional_weight)
            assigned = powers / powers.sum(-1, keepdim=True).sqrt()
            target = share * torch.cat([member, assigned / assigned.sum(1, keepdim=True)], -1)
            predicted = share * predicted
            moved = target - predicted + predicted.sum(-1, keepdim=True) * vectors
            vectors = moved / target.sum(-1, keepdim=True)
        return similarity(query, vectors @ x)

    def extra_repr(self) -> str:
        return f"support_weight={self.support_weight}, conditional_weight={self.conditional_weight}, steps={self.steps}"

    def protocol(self) -> dict[str, Any]:
        return {"inference": f"transductive: mutual information, {self.steps} steps; assumes balanced queries"}


class OptimalTransport(Refinement):
    """PT-MAP's estimate of the class centres (Hu, Gripon & Pateux 2020, arXiv:2006.03806, section 3.3).

    Features of the support set and of the queries are centred, each by its own mean, and normalised. Then, ``steps``
    times, queries are assigned to the classes by regularised optimal transport, in which every class gets the same
    number of queries, and the centres move by ``rate`` towards the means of their support examples and assigned
    queries. The logits are the logarithms of the last assignment. The paper's power transform is
    ``algorithm.head.features=power``, and its regularisation is the scale of the similarity.

    Args:
        rate: Part of the way that centres move, the paper's alpha.
        steps: Number of updates of the centres.
        sinkhorn_steps: Iterations of Sinkhorn's algorithm in each, from the factors of the one before.
    """

    euclidean = True

    def __init__(self, *, rate: Rate, steps: Positive, sinkhorn_steps: Positive) -> None:
        super().__init__()
        self.rate, self.steps, self.sinkhorn_steps = rate, steps, sinkhorn_steps

    def forward(self, similarity: Similarity, support: Labelled, centres: Tensor, query: Tensor) -> Tensor:
        member, known = membership(support.y, support.way, query.dtype), support.x.shape[1]
        x = torch.cat([F.normalize(x - x.mean(1, keepdim=True), dim=-1) for x in (support.x, query)], 1)
        inner, count = x @ x.transpose(1, 2), member.sum(-1, keepdim=True)
        vectors, factors = F.pad(member / count, (0, query.shape[1])), torch.ones_like(count)
        for _ in range(self.steps):
            share, factors = self.transport(nearness(similarity, inner, vectors)[..., known:], factors)
            found = torch.cat([member, share], -1) / (count + share.sum(-1, keepdim=True))
            vectors = vectors + self.rate * (found - vectors)
        share, _ = self.transport(nearness(similarity, inner, vectors)[..., known:], factors)
        return share.log().transpose(1, 2)

    def transport(self, logits: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        """Return assignments [T, way, Nq], in which each query sums to 1 and each class to Nq / way, and class factors.

        Args:
            logits: Minus the regularised costs, [T, way, Nq].
            factors: Factors of the classes [T, way, 1] to start from, such as those of similar costs.
        """
        tiny = torch.finfo(logits.dtype).tiny ** 0.5
        kernel = (logits - logits.amax(1, keepdim=True)).exp().clamp(min=tiny).contiguous()
        each = logits.shape[2] / logits.shape[1]
        for _ in range(self.sinkhorn_steps):
            query_factors = (kernel * factors).sum(1, keepdim=True).reciprocal()
            factors = each / (kernel * query_factors).sum(2, keepdim=True)
        assigned = kernel * factors
        return assigned / assigned.sum(1, keepdim=True), factors

    def extra_repr(self) -> str:
        return f"rate={self.rate}, steps={self.steps}, sinkhorn_steps={self.sinkhorn_steps}"

    def protocol(self) -> dict[str, Any]:
        return {"inference": f"transductive: optimal transport, {self.steps} steps; assumes balanced queries"}


def nearness(similarity: Similarity, inner: Tensor, vectors: Tensor) -> Tensor:
    """Return Euclidean logits [T, way, N] of examples by class vectors that are combinations of them.

    The inner products of the examples give all distances, which takes less time than their features in every step.

    Args:
        similarity: Similarity by the squared Euclidean distance.
        inner: Inner products of the examples, [T, N, N].
        vectors: Coefficients of the class vectors, [T, way, N].
    """
    near = vectors @ inner
    return similarity.scale * (2 * near - (near * vectors).sum(-1, keepdim=True))
