"""Causes, networks and trees that are drawn at random: where the columns of synthetic tables come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metarun.tasks.tabular.draws import Array, Draws, between, ranks, standardised

LAYERS, UNITS = 4, 20
"""Largest number of layers of a network, and the number of units of each."""
TREES, DEPTH = 6, 5
"""Largest number of trees, and their largest depth."""
CLUSTERS = 8
"""Largest number of clusters of rows."""


def roots(draws: Draws, rows: int, clustered: float) -> Array:
    """Draw independent causes.

    Args:
        draws: Random numbers.
        rows: Number of rows, R.
        clustered: Share of tables whose rows belong to clusters, each with centres of its own.

    Returns:
        Standardised values [T, R, UNITS]: normal, uniform or heavy-tailed, by cause.
    """
    normal = draws.normal(CLUSTERS + rows, UNITS)
    centres, own = normal[:, :CLUSTERS], normal[:, CLUSTERS:]
    u = draws.uniform(2 + UNITS + rows)
    kind, place = u[:, None, 2 : 2 + UNITS], u[:, 2 + UNITS :]
    uniform = 2 * ranks(own) / rows - 1
    values = np.where(kind < 0.4, own, np.where(kind < 0.7, 1.7 * uniform, own * np.exp(0.5 * np.abs(own))))
    cluster = np.floor(place * between(u[:, :1], 2, CLUSTERS)).astype(np.int64)
    at = np.take_along_axis(centres, cluster[..., None], 1)
    return standardised(np.where(u[:, 1, None, None] < clustered, values + 2.5 * at, values))


@dataclass
class Networks:
    """Random networks, one for each of T tables. Their units are also the nodes of structural causal models.

    Attributes:
        weights: Weights [T, LAYERS, UNITS, UNITS], many of which are 0.
        kinds: Uniforms that choose the function of each unit, [T, LAYERS, UNITS].
    """

    weights: Array
    kinds: Array

    @classmethod
    def draw(cls, draws: Draws) -> Networks:
        """Draw networks. Each has its own share of absent connections, at most .8."""
        u = draws.uniform(1 + LAYERS * UNITS)
        there = draws.uniform(LAYERS, UNITS, UNITS) >= 0.8 * u[:, :1, None, None]
        return cls(draws.normal(LAYERS, UNITS, UNITS) * there, u[:, 1:].reshape(-1, LAYERS, UNITS))

    def units(self, inputs: Array, noise: Array | None = None) -> Array:
        """Return the units of all layers.

        Args:
            inputs: Inputs [T, R, D] with D <= UNITS.
            noise: Noise that is added to the units, [T, R, LAYERS, UNITS].

        Returns:
            Units, [T, R, LAYERS, UNITS].
        """
        values, found = inputs, []
        for layer in range(LAYERS):
            values = standardised(values @ self.weights[:, layer, : values.shape[-1]])
            values = activated(values, self.kinds[:, layer])
            if noise is not None:
                values = values + noise[:, :, layer]
            found.append(values)
        return np.stack(found, 2)


FUNCTIONS = (0.3, 0.25, 0.2, 0.1, 0.08, 0.07)
"""Shares of units with tanh, identity, ReLU, sine, square and sign."""


def activated(values: Array, kinds: Array) -> Array:
    """Apply a function to each unit.

    Args:
        values: Standardised values, [T, R, U].
        kinds: Uniforms [T, U], which choose the functions.
    """
    kind = np.searchsorted(np.cumsum(FUNCTIONS)[:-1], kinds, side="right")[:, None]
    functions = [np.tanh(1.5 * values), values, np.maximum(values, 0), np.sin(2 * values), np.square(values) - 1,
                 np.sign(values)]  # fmt: skip
    return np.choose(np.broadcast_to(kind, values.shape), functions)


def tree_scores(draws: Draws, x: Array, outputs: int) -> Array:
    """Return the sum of random trees on columns. Each table has its own number of trees and depth.

    Args:
        draws: Random numbers.
        x: Columns [T, R, C].
        outputs: Number of values of a leaf, K.

    Returns:
        Scores [T, R, K].
    """
    tables, rows, columns = x.shape
    inner = TREES * (2**DEPTH - 1)
    u = draws.uniform(2 + 2 * inner)
    number, depth = (between(u[:, i], 1, most)[:, None, None] for i, most in enumerate((TREES, DEPTH)))
    column = np.floor(u[:, 2 : 2 + inner] * columns).astype(np.int64)
    # A threshold is the value of a row, so that most splits divide the table.
    row = np.floor(u[:, 2 + inner :] * rows).astype(np.int64)
    threshold = x[np.arange(tables)[:, None], row, column].reshape(tables, TREES, -1)
    column = column.reshape(tables, TREES, -1)
    leaves = draws.normal(TREES, 2**DEPTH, outputs)
    t, r, k = np.arange(tables)[:, None, None], np.arange(rows)[:, None], np.arange(TREES)
    node = np.zeros((tables, rows, TREES), np.int64)  # numbered level by level: the children of i are 2 i + 1, 2 i + 2
    for level in range(DEPTH):
        inside = np.where(level < depth, node, 0)
        right = x[t, r, column[t, k, inside]] > threshold[t, k, inside]
        node = np.where(level < depth, 2 * node + 1 + right, node)
    leaf = node - (2**depth - 1)
    return (leaves[t, k, leaf] * (k < number)[..., None]).sum(2)
