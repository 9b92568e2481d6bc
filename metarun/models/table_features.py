"""Input features of tables: of cells, and the labels of support rows that are near in one column or in all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLIP = 5.0
"""Standardised values are clipped at this many standard deviations."""


def cell_features(x: Tensor, queries: Tensor) -> Tensor:
    """Return the standardised value, the quantile and the flag of a gap of every cell.

    Args:
        x: Support rows [T, N, C]; NaN marks a gap.
        queries: Query rows [T, M, C].

    Returns:
        Features [T, N + M, C, 3], by means, deviations and quantiles of the support rows. Quantiles are in -1..1. Both
        are 0 for a gap and in a column without a value in the support rows.
    """
    both = torch.cat([x, queries], 1)
    gap, given = both.isnan(), ~x.isnan()
    values = both.masked_fill(gap, 0)
    # Scaled by the largest value first, so that squares of large numbers stay finite.
    largest = values[:, : x.shape[1]].abs().amax(1, keepdim=True)
    values = values / torch.where(largest > 0, largest, 1)
    known = values[:, : x.shape[1]]
    count = given.sum(1, keepdim=True)
    total = count.clamp(min=1)
    mean = known.sum(1, keepdim=True) / total
    deviation = ((known - mean).square() * given).sum(1, keepdim=True).div(total).sqrt()
    varies = deviation > 1e-6
    z = ((values - mean) / torch.where(varies, deviation, 1)).clamp(-CLIP, CLIP)
    ordered = known.masked_fill(~given, torch.inf).transpose(1, 2).sort(-1).values.contiguous()
    asked = values.transpose(1, 2).contiguous()
    below, up_to = (torch.searchsorted(ordered, asked, right=right).transpose(1, 2) for right in (False, True))
    quantile = (below + up_to) / total - 1
    empty = gap | (count == 0)
    features = [torch.where(empty, 0, part) for part in (z, quantile.to(z.dtype))]
    return torch.stack([*features, gap.to(z.dtype)], -1)


class NearLabels(nn.Module):
    """Mean label of the support rows with near values in a column, for each cell; a support row leaves itself out.

    The weight of a support row falls with the squared distances d of quantiles and standardised values as
    exp(-a d_quantile - b d_value), with learned a and b of each kernel. Gaps weigh nothing beside a value.

    Args:
        outputs: Number of classes or targets, K.
        width: Size of a token.
    """

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        self.log_rates = nn.Parameter(torch.tensor([[4.0, 32.0, 256.0], [0.25, 2.0, 16.0]]).log())
        self.embed = nn.Linear(3 * outputs, width, bias=False)

    def forward(self, features: Tensor, y: Tensor) -> Tensor:
        """Return embedded labels.

        Args:
            features: Features [T, R, C, 3] of :func:`cell_features`, the support rows first.
            y: Labels of the N support rows, [T, N, K].

        Returns:
            Embeddings [T, R, C, width].
        """
        count = y.shape[1]
        z, quantile, gap = (part.transpose(1, 2)[:, :, None] for part in features.unbind(-1))
        a, b = self.log_rates.exp()[:, :, None]
        asking = torch.stack([2 * a * quantile, 2 * b * z, torch.ones_like(a * z)], -1)
        # The square of the asking cell's own value is left out, which the softmax would cancel.
        own = -a * quantile.square() - b * z.square() - 100 * gap
        known = torch.stack([quantile.expand_as(own), z.expand_as(own), own], -1)[..., :count, :]
        itself = torch.eye(features.shape[1], count, dtype=torch.bool, device=y.device)
        weights = (asking @ known.transpose(-1, -2)).masked_fill(itself, -1e4).softmax(-1)
        centred = y - y.mean(1, keepdim=True)
        return self.embed((weights @ centred[:, None, None]).permute(0, 3, 1, 2, 4).flatten(3))


class NearRows(nn.Module):
    """Mean label of the support rows that are near in all columns, for each row; a support row leaves itself out.

    Weights fall with the distance as in :func:`nearness`, with learned rates of each of several kernels.

    Args:
        outputs: Number of classes or targets, K.
        width: Size of a token.
    """

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        self.log_rates = nn.Parameter(spread_rates(0.5, 4))
        self.embed = nn.Linear(len(self.log_rates) * outputs, width, bias=False)

    def forward(self, features: Tensor, y: Tensor) -> Tensor:
        """Return embedded labels.

        Args:
            features: Features [T, R, C, 3] of :func:`cell_features`, the support rows first.
            y: Labels of the N support rows, [T, N, K].

        Returns:
            Embeddings [T, R, width].
        """
        count = y.shape[1]
        itself = torch.eye(features.shape[1], count, dtype=torch.bool, device=y.device)
        weights = nearness(features, features[:, :count], self.log_rates).masked_fill(itself, -1e4).softmax(-1)
        centred = y - y.mean(1, keepdim=True)
        return self.embed((weights @ centred[:, None]).transpose(1, 2).flatten(2))


def spread_rates(smallest: float, kernels: int) -> Tensor:
    """Return logarithms of rates for :func:`nearness`, [kernels, 3], each kernel four times as narrow as the last."""
    rates = smallest * 4.0 ** torch.arange(kernels)
    return (rates[:, None] * torch.tensor([1.0, 2.0, 2.0])).log()


def nearness(asking: Tensor, known: Tensor, log_rates: Tensor) -> Tensor:
    """Return how near rows are in all columns: minus a sum of squared differences, up to a constant of the asking row.

    Args:
        asking: Features of R rows, [T, R, C, 3].
        known: Features of N rows, [T, N, C, 3].
        log_rates: Logarithm of the weights of squared differences of the three features, in each of K kernels, [K, 3].

    Returns:
        Nearness, [T, K, R, N].
    """
    scale = (0.5 * log_rates).exp()[:, None, None]
    a, b = ((part[:, None] * scale).flatten(3) for part in (asking, known))
    return 2 * a @ b.transpose(-1, -2) - b.square().sum(-1)[:, :, None]
