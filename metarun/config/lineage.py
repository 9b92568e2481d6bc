"""The order in which Python looks up an attribute in a class and its base classes, from declarations alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Ancestor:
    """A class in the lineage of another, with what it declares itself.

    Attributes:
        path: Its import path.
        attributes: Its own class attributes with literal values.
        constructor: Parameters of its own constructor, and whether that takes any others; ``None`` if it has none.
    """

    path: str
    attributes: dict[str, Any] = field(default_factory=dict)
    constructor: tuple[dict[str, Any], bool] | None = None


def linearised(lineages: Sequence[Sequence[Ancestor]]) -> tuple[Ancestor, ...]:
    """Merge the lineages of a class's bases, in their order, as Python's method resolution order (C3) does."""
    pending = [list(lineage) for lineage in lineages]
    found: list[Ancestor] = []
    while pending:
        later = {each.path for lineage in pending for each in lineage[1:]}
        # Classes that Python would refuse to create have no such head.
        head = next((lineage[0] for lineage in pending if lineage[0].path not in later), pending[0][0])
        found.append(head)
        pending = [rest for lineage in pending if (rest := [each for each in lineage if each.path != head.path])]
    return tuple(found)
