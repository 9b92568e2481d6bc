"""Detection of queries of unknown classes by the scores of a classifier."""

from __future__ import annotations

import torch
from torch import Tensor

ACCEPTED = 0.95
"""Share of known queries that are accepted at the threshold of the false positive rate."""


def detection_metrics(known: Tensor, unknown: Tensor, distances: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
    """Return how well scores separate known from unknown queries, task by task.

    The scores are the maximum probability (Hendrycks & Gimpel 2017, arXiv:1610.02136), the energy, which is the
    logarithm of the sum of the exponentials of the logits (Liu et al. 2020, arXiv:2010.03759, equation 5), and minus
    the distance to the nearest prototype.

    Args:
        known: Logits of the queries of known classes, [T, Nq, way].
        unknown: Logits of the queries of unknown classes, [T, Nu, way].
        distances: Distances of both to the nearest prototype, [T, Nq] and [T, Nu]; ``None`` without prototypes.

    Returns:
        ``auroc_<score>`` and ``fpr95_<score>`` as [T], for ``probability``, ``energy`` and ``distance``.
    """
    scores = {
        "probability": tuple(each.softmax(-1).amax(-1) for each in (known, unknown)),
        "energy": tuple(each.logsumexp(-1) for each in (known, unknown)),
    }
    if distances is not None:
        scores["distance"] = (-distances[0], -distances[1])
    areas = {f"auroc_{name}": auroc(*pair) for name, pair in scores.items()}
    return areas | {f"fpr95_{name}": false_positive_rate(*pair) for name, pair in scores.items()}


def auroc(known: Tensor, unknown: Tensor) -> Tensor:
    """Return the area under the receiver operating characteristic, [T].

    It is the probability that a known query has a higher score than an unknown one. Equal scores count as one half. It
    is NaN if a score is.

    Args:
        known: Scores of known queries, [T, Nq].
        unknown: Scores of unknown queries, [T, Nu].
    """
    above = (known[:, :, None] > unknown[:, None]).to(known.dtype).mean((1, 2))
    equal = (known[:, :, None] == unknown[:, None]).to(known.dtype).mean((1, 2))
    return _unless_nan(above + equal / 2, known, unknown)


def false_positive_rate(known: Tensor, unknown: Tensor) -> Tensor:
    """Return the share of unknown queries that pass the highest threshold that 95 % of the known ones pass, [T].

    It is NaN if a score is.

    Args:
        known: Scores of known queries, [T, Nq].
        unknown: Scores of unknown queries, [T, Nu].
    """
    count = known.shape[1]
    passing = -int(-ACCEPTED * count // 1)  # rounded up
    threshold = known.sort(1, descending=True).values[:, passing - 1 : passing]
    return _unless_nan((unknown >= threshold).to(known.dtype).mean(1), known, unknown)


def _unless_nan(values: Tensor, known: Tensor, unknown: Tensor) -> Tensor:
    return torch.where((known.isnan().any(1) | unknown.isnan().any(1)), torch.nan, values)
