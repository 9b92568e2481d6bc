"""Notes on identical examples in the data of few-shot classification."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from metarun.types import Split

MAX_COMPARED_BYTES = 4 << 30
"""Largest data in which duplicates are searched; the search takes seconds."""
MANY_DUPLICATES = 0.01
"""Share of duplicates from which on a user is warned that scores are too high."""


def duplicate_remarks(
    name: str,
    contents: Sequence[Hashable],
    offsets: np.ndarray,
    classes: Mapping[Split, np.ndarray],
    held_out_val: bool,
) -> list[str]:
    """Return notes on duplicates within classes, and between the test classes and other splits.

    Args:
        name: Name of the data.
        contents: One value for each example, equal for identical examples.
        offsets: First example of each class, and the number of examples, [C + 1].
        classes: Class ids of each split.
        held_out_val: True if the validation split shares no class with the meta-train split.
    """
    values = np.fromiter(map(hash, contents), np.int64, len(contents))
    again = _repeated(values, offsets)
    repeated, found = 0, {}
    for split, ids in classes.items():
        rows = np.concatenate([np.arange(offsets[c], offsets[c + 1]) for c in ids])
        repeated += int(again[rows].sum())
        found[split] = np.unique(values[rows])
    remarks = []
    if repeated:
        share = repeated / len(contents)
        warning = "; scores are too high" if share >= MANY_DUPLICATES else ""
        remarks.append(
            f"{name}: {repeated} of {len(contents)} examples have a duplicate in their class "
            f"({100 * share:.2g} %): a query example can also be in the support set{warning}"
        )
    others = np.concatenate([each for split, each in found.items() if split != "test"])
    shared = int(np.isin(found["test"], others).sum())
    if shared and held_out_val:
        remarks.append(f"{name}: {shared} examples of the test classes are also in other splits")
    return remarks


def _repeated(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return which values [N] are equal to another of their class, [N]."""
    owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((values, owners))
    equal = (np.diff(values[order]) == 0) & (np.diff(owners[order]) == 0)
    repeated = np.zeros(len(values), dtype=bool)
    repeated[order[1:][equal]] = True
    repeated[order[:-1][equal]] = True
    return repeated
