"""Notes on identical examples in the data of few-shot classification."""

from __future__ import annotations

from collections import Counter
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
    splits: dict[Hashable, set[Split]] = {}
    repeated = 0
    for split, ids in classes.items():
        for c in ids:
            counts = Counter(contents[offsets[c] : offsets[c + 1]])
            repeated += sum(count for count in counts.values() if count > 1)
            for content in counts:
                splits.setdefault(content, set()).add(split)
    remarks = []
    if repeated:
        share = repeated / len(contents)
        warning = "; scores are too high" if share >= MANY_DUPLICATES else ""
        remarks.append(
            f"{name}: {repeated} of {len(contents)} examples have a duplicate in their class "
            f"({100 * share:.2g} %): a query example can also be in the support set{warning}"
        )
    shared = sum("test" in homes and len(homes) > 1 for homes in splits.values())
    if shared and held_out_val:
        remarks.append(f"{name}: {shared} examples of the test classes are also in other splits")
    return remarks
