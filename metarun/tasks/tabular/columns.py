"""Effects that make synthetic columns like those of real tables: categories, skew, rounding, copies and gaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metarun.tasks.tabular.draws import Array, Draws, between, ranks, standardised

LEVELS = 10
"""Largest number of categories of a column."""


@dataclass(frozen=True)
class Effects:
    """Shares of columns that are changed.

    Attributes:
        redundant: Columns that become a noisy copy of another one.
        skewed: Columns whose scale is a power or an exponential.
        rounded: Columns rounded to a few values.
        categories: Columns cut into 2 to 10 categories. The codes of half of them are in no order.
        gaps: Tables with gaps. Each column of such a table has its own share of gaps, at most .5.
    """

    redundant: float
    skewed: float
    rounded: float
    categories: float
    gaps: float

    def apply(self, draws: Draws, x: Array) -> Array:
        """Return columns [T, R, C] with these effects; NaN marks a gap."""
        rows, columns = x.shape[1:]
        u = draws.uniform(columns, 8)[:, None]
        table = draws.uniform(2)[:, :, None, None]
        x = standardised(x)
        other = np.floor(u[..., 0] * columns).astype(np.int64)
        sign = np.where(u[..., 1] < 0.5, -1, 1)
        copied = sign * np.take_along_axis(x, np.broadcast_to(other, x.shape), 2)
        copied = copied + 0.5 * u[..., 2] * draws.normal(rows, columns)
        x = standardised(np.where(u[..., 3] < self.redundant, copied, x))
        strength = 0.3 + 1.2 * u[..., 2]
        power = np.sign(x) * np.abs(x) ** (2 * strength)
        skewed = np.where(u[..., 0] < 0.5, power, np.exp(strength * np.clip(x, -4, 4)))
        coarse = np.round((0.7 + 4 * u[..., 1]) * x)
        kind = u[..., 4]
        end = self.skewed + self.rounded
        x = np.where(kind < self.skewed, skewed, np.where(kind < end, coarse, x))
        x = np.where((kind >= end) & (kind < end + self.categories), categories(draws, x, u[..., 5]), x)
        holes = (table[:, 0] < self.gaps) * 0.5 * np.square(u[..., 6]) * (u[..., 7] < table[:, 1])
        return np.where(draws.uniform(rows, columns) < holes, np.nan, x)


def categories(draws: Draws, x: Array, u: Array) -> Array:
    """Cut columns [T, R, C] into categories, whose number and order ``u`` [T, 1, C] decides."""
    _, rows, columns = x.shape
    levels = between((2 * u % 1) ** 2, 2, LEVELS)
    cut = levels * (ranks(x) / rows) ** (1 + (2 * u % 1))
    code = np.minimum(np.floor(cut).astype(np.int64), LEVELS - 1)
    names = draws.uniform(LEVELS, columns).argsort(1)
    return np.where(u < 0.5, np.take_along_axis(names, code, 1), code).astype(np.float64)
