"""Random splits of classes into meta-train, meta-validation and meta-test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metarun.errors import require
from metarun.tasks.rng import permutation
from metarun.types import SPLITS, Split


def split_classes(
    groups: Sequence[int] | np.ndarray, *, val: float, test: float, seed: int, least: int = 0
) -> dict[Split, np.ndarray]:
    """Split classes at random into meta-train, meta-validation and meta-test.

    Groups are visited in a seeded order. Each goes to test, else to val, if it still fits there, and to train
    otherwise.

    Args:
        groups: Group of each class, [C]. The classes of a group stay in one split; ``range(C)`` puts every class into a
            group of its own.
        val: Fraction of the classes for validation.
        test: Fraction of the classes for test.
        seed: Seed of the order.
        least: Smallest number of classes for each split whose fraction is not 0, if there are enough classes for all.

    Returns:
        Class ids of each split, sorted.

    Raises:
        UserError: ``val + test`` is 1 or more.
    """
    require(val + test < 1, f"task.val={val} + task.test={test} leave no classes to meta-train on")
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group)
    home = np.zeros(len(sizes), dtype=np.int64)
    room = {2: round(test * len(group)), 1: round(val * len(group))}
    if len(group) >= least * (1 + (val > 0) + (test > 0)):
        room = {2: max(room[2], least * (test > 0)), 1: max(room[1], least * (val > 0))}
    for g in permutation(seed, len(sizes)):
        home[g] = next((split for split, left in room.items() if sizes[g] <= left), 0)
        if home[g]:
            room[home[g]] -= sizes[g]
    return {split: np.flatnonzero(home[group] == i) for i, split in enumerate(SPLITS)}
