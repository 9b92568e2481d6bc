"""A transformer over the cells of a table, which reads labelled rows and predicts others in one forward pass."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.errors import require
from metarun.tasks.episode import Spec
from metarun.types import Count, Positive

CLIP = 5.0
"""Standardised values are clipped at this many standard deviations."""
FLOOR = 0.01
"""Share of each class that is added to the recalled shares before their logarithm."""


class TableTransformer(nn.Module):
    """Transformer over cells, then over rows, after TabPFN v2 and TabICL (Qu et al. 2025, arXiv:2502.05564).

    Every cell is a token, and a further token of each row holds its label. In a block over cells, the label token
    attends to the cells of its row and is then added to each of them by a linear map. (TabPFN's cells attend to each
    other, which takes a third more time.) All tokens then attend to the same column of the support rows. After these
    blocks the label tokens continue alone in blocks over rows, which attend to the support rows.

    Query rows are attended to by none, so that predictions are independent of each other. There are no positions: the
    order of columns and of support rows does not matter.

    A cell is given as its standardised value, clipped at 5 standard deviations, its quantile among the support rows,
    a flag for a gap, and the labels of the support rows with near values in its column. Means, deviations and quantiles
    are those of the support rows. The result is the logarithm of the labels that attention recalls from the support
    rows plus a perceptron of the row. Both recalls let a network predict by similarity from the first step on; without
    them it predicts nothing but the frequency of classes for many steps.

    Args:
        spec: The task family. Its ``output_size`` is the largest number of classes, or the number of targets.
        width: Size of a cell's token.
        layers: Number of blocks over cells.
        row_width: Size of a row's token.
        row_layers: Number of blocks over rows.
        heads: Number of attention heads. It must divide both widths.
    """

    modalities: ClassVar[tuple[str, ...]] = ("table",)
    role: ClassVar[str] = "in_context"

    def __init__(
        self, spec: Spec, *, width: Positive, layers: Positive, row_width: Positive, row_layers: Count, heads: Positive
    ) -> None:
        super().__init__()
        for name, size in (("width", width), ("row_width", row_width)):
            require(size % heads == 0, f"model.{name}={size} cannot be shared out among model.heads={heads}")
        outputs = spec.output_size if spec.kind == "classification" else 2 * spec.output_size
        self.is_classifier = spec.kind == "classification"
        self.cells = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.near = NearLabels(spec.output_size, width)
        self.labels = nn.Linear(spec.output_size, width)
        self.question = nn.Parameter(torch.randn(width) / width**0.5)
        self.blocks = nn.ModuleList(CellBlock(width, heads, last=n == layers - 1) for n in range(layers))
        self.rows = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, row_width))
        self.row_blocks = nn.ModuleList(RowBlock(row_width, heads) for _ in range(row_layers))
        self.recall = Recall(row_width, heads)
        self.head = nn.Sequential(
            nn.LayerNorm(row_width), nn.Linear(row_width, row_width), nn.GELU(), nn.Linear(row_width, outputs)
        )

    def forward(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Predict query rows from support rows.

        Args:
            x: Support rows [T, N, C]; NaN marks a gap. C may differ from call to call.
            y: Their labels [T, N, K]: one-hot classes, or standardised targets.
            queries: Query rows [T, M, C].

        Returns:
            Logits [T, M, K], or mean and unbounded deviation of each target, [T, M, 2 K].
        """
        count, asked = x.shape[1], queries.shape[1]
        features = cell_features(x, queries)
        cells = self.cells(features) + self.near(features, y)
        question = self.question.expand(len(x), asked, -1)
        tokens = torch.cat([cells, torch.cat([self.labels(y), question], 1)[:, :, None]], 2)
        for block in self.blocks:
            tokens = block(tokens, count)
        rows = self.rows(tokens)
        for block in self.row_blocks:
            rows = block(rows, count)
        support, asking = rows[:, :count, 0], rows[:, count:, 0]
        recalled, found = self.recall(asking, support, y), self.head(asking)
        if self.is_classifier:
            return found + torch.log(recalled + FLOOR)
        return found + F.pad(recalled, (0, found.shape[-1] - recalled.shape[-1]))


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


class Recall(nn.Module):
    """Mean label of the support rows, weighted by attention and averaged over heads.

    Args:
        width: Size of a row's token.
        heads: Number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, asking: Tensor, support: Tensor, y: Tensor) -> Tensor:
        """Return mean labels [T, M, K] for query tokens [T, M, width], from support tokens [T, N, width] with labels
        ``y`` [T, N, K].
        """
        q, k = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(self.before(asking)), self.key(self.before(support)))
        )
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1).mean(1)
        return weights @ y


class Attention(nn.Module):
    """Multi-head attention with a layer norm of its inputs before it.

    Args:
        width: Size of a token.
        heads: Number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def over_columns(self, tokens: Tensor) -> Tensor:
        """Attend from the label token to all tokens of the row.

        Args:
            tokens: Tokens [T, R, C, width], the label token last.

        Returns:
            The changes of the label tokens, [T, R, 1, width].
        """
        normed = self.before(tokens)
        asking = normed[:, :, -1:]
        q, k, v = (
            part.flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(asking), self.key(normed), self.value(normed))
        )
        found = F.scaled_dot_product_attention(q, k, v)
        return self.out(found.transpose(1, 2).flatten(2).view_as(asking))

    def over_rows(self, tokens: Tensor, count: int) -> Tensor:
        """Attend to the same column of the support rows.

        Args:
            tokens: Tokens [T, R, C, width], the support rows first.
            count: Number of support rows.

        Returns:
            The changes of the tokens, [T, R, C, width].
        """
        normed = self.before(tokens)
        known = normed[:, :count]
        # Columns and heads are one batch dimension, without a copy: [T, C * heads, rows, width / heads].
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).flatten(2, 3).transpose(1, 2)
            for part in (self.query(normed), self.key(known), self.value(known))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(tokens.shape))


class RowBlock(nn.Module):
    """Pre-norm block: attention to the support rows, column by column, and a perceptron.

    Args:
        width: Size of a token.
        heads: Number of attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.along_rows = Attention(width, heads)
        self.units = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor, count: int) -> Tensor:
        """Apply the block to tokens [T, R, C, width], the first ``count`` rows of which are the support rows."""
        tokens = tokens + self.along_rows.over_rows(tokens, count)
        return tokens + self.units(tokens)


class CellBlock(RowBlock):
    """Exchange between the label token and the cells of its row, followed by a :class:`RowBlock`.

    Args:
        width: Size of a token.
        heads: Number of attention heads.
        last: True if only the label tokens are needed after this block.
    """

    def __init__(self, width: int, heads: int, last: bool) -> None:
        super().__init__(width, heads)
        self.along_columns = Attention(width, heads)
        self.spread = None if last else nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, tokens: Tensor, count: int) -> Tensor:
        """Apply the block.

        Args:
            tokens: Tokens [T, R, C, width], the support rows first and the label token last.
            count: Number of support rows.

        Returns:
            Tokens [T, R, C, width], or only the label tokens [T, R, 1, width] of the last block.
        """
        label = tokens[:, :, -1:] + self.along_columns.over_columns(tokens)
        if self.spread is not None:
            label = torch.cat([tokens[:, :, :-1] + self.spread(label), label], 2)
        return super().forward(label, count)


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
