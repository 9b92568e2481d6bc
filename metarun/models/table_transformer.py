"""A transformer over the cells of a table, which reads labelled rows and predicts others in one forward pass."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.errors import require
from metarun.models.table_features import NearLabels, NearRows, cell_features, nearness, spread_rates
from metarun.tasks.episode import Spec
from metarun.types import Count, Positive

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
    are those of the support rows. The label token is also given the labels of the support rows that are near in all
    columns. The result is the logarithm of the labels that attention recalls from the support rows plus a perceptron
    of the row. These recalls let a network predict by similarity from the first step on; without them it predicts
    nothing but the frequency of classes for many steps.

    Args:
        spec: The task family. Its ``output_size`` is the largest number of classes, or the number of targets.
        width: Size of a cell's token.
        layers: Number of blocks over cells.
        row_width: Size of a row's token.
        row_layers: Number of blocks over rows.
        heads: Number of attention heads. It must divide both widths.
        joint: Whether nearness in all columns at once counts: a row is given the labels of near support rows, and
            recall prefers near rows. Without it, a network does not learn how columns act together.
    """

    modalities: ClassVar[tuple[str, ...]] = ("table",)
    role: ClassVar[str] = "in_context"

    def __init__(
        self,
        spec: Spec,
        *,
        width: Positive,
        layers: Positive,
        row_width: Positive,
        row_layers: Count,
        heads: Positive,
        joint: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (("width", width), ("row_width", row_width)):
            require(size % heads == 0, f"model.{name}={size} cannot be shared out among model.heads={heads}")
        outputs = spec.output_size if spec.kind == "classification" else 2 * spec.output_size
        self.is_classifier = spec.kind == "classification"
        self.cells = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.near = NearLabels(spec.output_size, width)
        self.near_rows = NearRows(spec.output_size, width) if joint else None
        self.labels = nn.Linear(spec.output_size, width)
        self.question = nn.Parameter(torch.randn(width) / width**0.5)
        self.blocks = nn.ModuleList(CellBlock(width, heads, last=n == layers - 1) for n in range(layers))
        self.rows = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, row_width))
        self.row_blocks = nn.ModuleList(RowBlock(row_width, heads) for _ in range(row_layers))
        self.recall = Recall(row_width, heads, joint)
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
        label = torch.cat([self.labels(y), self.question.expand(len(x), asked, -1)], 1)
        if self.near_rows is not None:
            label = label + self.near_rows(features, y)
        tokens = torch.cat([cells, label[:, :, None]], 2)
        for block in self.blocks:
            tokens = block(tokens, count)
        rows = self.rows(tokens)
        for block in self.row_blocks:
            rows = block(rows, count)
        support, asking = rows[:, :count, 0], rows[:, count:, 0]
        recalled, found = self.recall(asking, support, y, features), self.head(asking)
        if self.is_classifier:
            return found + torch.log(recalled + FLOOR)
        return found + F.pad(recalled, (0, found.shape[-1] - recalled.shape[-1]))


class Recall(nn.Module):
    """Mean label of the support rows, weighted by attention and averaged over heads.

    Args:
        width: Size of a row's token.
        heads: Number of heads.
        joint: Whether weights also fall with the distance of rows, with learned rates of each head.
    """

    def __init__(self, width: int, heads: int, joint: bool) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.log_rates = nn.Parameter(spread_rates(0.1, heads)) if joint else None

    def forward(self, asking: Tensor, support: Tensor, y: Tensor, features: Tensor) -> Tensor:
        """Return mean labels.

        Args:
            asking: Tokens of the query rows, [T, M, width].
            support: Tokens of the support rows, [T, N, width].
            y: Labels of the support rows, [T, N, K].
            features: Features [T, N + M, C, 3] of :func:`cell_features`, the support rows first.

        Returns:
            Mean labels of the query rows, [T, M, K].
        """
        q, k = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(self.before(asking)), self.key(self.before(support)))
        )
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if self.log_rates is not None:
            known, asked = features.split([k.shape[2], q.shape[2]], 1)
            logits = logits + nearness(asked, known, self.log_rates)
        return logits.softmax(-1).mean(1) @ y


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
