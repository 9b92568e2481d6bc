"""Classes of tables: made of scores, and the order of rows by them."""

from __future__ import annotations

import numpy as np

from metarun.tasks.tabular.draws import Array, Draws, Integers, between, ranks, standardised


def classes(draws: Draws, scores: Array, *, most: int, imbalance: float, ordered: float, flipped: float) -> Integers:
    """Turn scores into classes.

    Args:
        draws: Random numbers.
        scores: Scores of each row, [T, R, most].
        most: Largest number of classes; small numbers are more frequent.
        imbalance: Largest standard deviation of the logarithm of the classes' frequencies.
        ordered: Share of tables whose classes are intervals of the first score; in the others, a row has the class
            of its largest score.
        flipped: Largest share of labels that are replaced by random ones.

    Returns:
        Classes [T, R]. A table's classes are 0..w-1 in random order, with w from 2 to ``most``.
    """
    rows = scores.shape[1]
    u = draws.uniform(4 + most)
    way = between(u[:, :1] ** 3, 2, most)
    spread = imbalance * u[:, 1:2] * draws.normal(most)
    frequency = np.exp(spread) * (np.arange(most) < way)
    frequency = frequency / frequency.sum(1, keepdims=True)
    ends = frequency.cumsum(1)[:, None] * rows
    intervals = (ranks(scores[..., 0])[..., None] + 0.5 > ends[..., :-1]).sum(2)
    biased = standardised(scores) + np.log(np.maximum(frequency, 1e-9))[:, None]
    y = np.where(u[:, 2:3] < ordered, intervals, biased.argmax(2))
    noise = draws.uniform(2, rows)
    wrong = noise[:, 0] < flipped * np.square(u[:, 3:4])
    y = np.where(wrong, np.floor(noise[:, 1] * way).astype(np.int64), y)
    y = np.where((y == y[:, :1]).all(1, keepdims=True), ranks(scores[..., 0]) * 2 // rows, y)
    there = (y[..., None] == np.arange(most)).any(1)
    new = np.where(there, u[:, 4:], 2).argsort(1).argsort(1)
    return np.take_along_axis(new, y, 1)


def first_of_each(y: Integers) -> Integers:
    """Return an order of the rows [T, R] with the first row of every class in front, and otherwise unchanged."""
    earlier = np.tril(y[:, :, None] == y[:, None, :], -1).any(2)
    return earlier.argsort(1, kind="stable")


def spread_over_classes(y: Integers, random: np.random.Generator) -> Integers:
    """Return an order of the rows [N] whose every beginning has each class in its share of the rows.

    The first rows are one of each class. Rows of a class are in random order.

    Args:
        y: Classes 0..w-1 of the rows, [N].
        random: Source of the order.
    """
    shuffled = random.permutation(len(y))
    by_class = shuffled[y[shuffled].argsort(kind="stable")]
    sizes = np.bincount(y)
    place = np.arange(len(y)) - np.repeat(sizes.cumsum() - sizes, sizes)
    return by_class[(place / np.repeat(sizes, sizes)).argsort(kind="stable")]
