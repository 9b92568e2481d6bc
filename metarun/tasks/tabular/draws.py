"""Random numbers and small steps that the generators of synthetic tables share, vectorised over tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from metarun.tasks.rng import normals, uniforms
from metarun.types import Split

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
FIRST_STREAM = 16
"""The first random stream of a table's draws. Lower ones have uses outside of the generators."""


@dataclass
class Draws:
    """Random numbers of T tables. Each call takes the next stream, so calls are made in a fixed order.

    Attributes:
        seed: Seed of the family.
        split: Split of the tables.
        indices: Numbers of the tables.
    """

    seed: int
    split: Split
    indices: Sequence[int]
    used: int = field(default=0, init=False)

    def uniform(self, *shape: int) -> Array:
        """Return uniforms in [0, 1), [T, *shape]."""
        return uniforms(self.seed, self.split, self.indices, prod(shape), self._stream()).reshape(-1, *shape)

    def normal(self, *shape: int) -> Array:
        """Return standard normals, [T, *shape]."""
        return normals(self.seed, self.split, self.indices, prod(shape), self._stream()).reshape(-1, *shape)

    def _stream(self) -> int:
        self.used += 1
        return FIRST_STREAM + self.used - 1


def standardised(values: Array) -> Array:
    """Return values [T, R, ...] with mean 0 and variance 1 over the rows; constants become 0."""
    values = values - values.mean(1, keepdims=True)
    deviation = np.sqrt(np.square(values).mean(1, keepdims=True))
    return values / np.where(deviation > 1e-9, deviation, 1)


def ranks(values: Array) -> Integers:
    """Return the place of each row in increasing order, 0..R-1, over the rows of [T, R, ...]."""
    return values.argsort(1).argsort(1)


def pick(values: Array, columns: Integers) -> Array:
    """Return the columns [T, C] of values [T, R, D], as [T, R, C]."""
    return np.take_along_axis(values, columns[:, None], 2)


def log_range(u: Array, low: float, high: float) -> Array:
    """Map uniforms to a log-uniform distribution between two positive numbers."""
    return low * (high / low) ** u


def between(u: Array, low: int, high: int) -> Integers:
    """Map uniforms to integers low..high."""
    return low + np.floor((high - low + 1) * u).astype(np.int64)
