"""Letters as the images of other families, in the smallest form."""

from __future__ import annotations

from typing import Any

from metarun.tasks.vision.glyphs import Glyphs


def letters(size: int, split_seed: int = 0, query: int = 1) -> Glyphs:
    """The letters of images of ``size`` pixels, without augmentation."""
    shape: dict[str, Any] = {"way": 5, "shot": 1, "query": query, "test_ways": [], "unknown": 0, "episodes": "balanced"}
    return Glyphs(0, **shape, size=size, val=0.1, test=0.2, split_seed=split_seed, augment=0)
