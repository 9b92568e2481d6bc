"""Inputs of a learner with their targets, read from one of the user's files or folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from metarun.adapted.columns import Columns
from metarun.errors import nearest, require
from metarun.tasks.tabular.encoding import Encoding

Labels = Literal["auto", "labelled", "unlabelled"]
"""States whether queries have known answers; ``auto`` detects and reports it."""


@dataclass
class Source:
    """Inputs, with their targets if known.

    Attributes:
        items: Paths of images, texts, or rows of numbers.
        targets: A class name or a row of numbers for each item; empty if unknown.
        notes: Remarks on the items read and skipped, and on the origin of the targets.
        columns: For a table of numbers with a header, the names of its inputs and of its targets.
        label: For images in a parquet file, the column of the classes; for texts, the one that is asked for.
    """

    items: list[Any]
    targets: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    columns: tuple[list[str], list[str]] | None = None
    encoding: Encoding | None = None
    """The reading of a table's columns."""
    label: str | None = None

    def read_columns(self) -> Columns | None:
        """Return the columns by which other files of the same form are read; ``None`` for images and texts."""
        return None if self.columns is None else Columns(*self.columns, self.encoding)

    def names(self) -> list[str]:
        """Return the name of each input for a table."""
        if self.encoding is not None:
            return [f"row {i}" for i in range(1, len(self.items) + 1)]
        return [str(item) if not isinstance(item, list) else " ".join(f"{v:g}" for v in item) for item in self.items]


def with_classes(
    source: Source,
    found: Sequence[str | None],
    where: Sequence[str],
    classes: Sequence[str],
    labels: Labels,
    origin: str,
) -> Source:
    """Set the classes ``found`` as targets of ``source``, if that is requested and all of them are in ``classes``."""
    unknown = Counter(name for name in found if name not in classes)
    if labels == "unlabelled" or not any(found):
        require(labels != "labelled", f"{where[0]}: --labelled needs folders named as classes")
        source.notes.append("unlabelled: predicted, not scored")
    elif not unknown:
        source.targets = list(found)
        source.notes.append(f"labelled: the classes are taken from the {origin}")
    else:
        at = next(i for i, name in enumerate(found) if name not in classes)
        name = found[at]
        what = f"'{name}'" if name else f"no class of its own ({where[at]})"
        reason = f"{what} is none of the classes of the support set ({', '.join(classes[:10])}"
        reason = f"{reason}{', ...' if len(classes) > 10 else ''}){nearest(str(name), classes)}"
        require(labels != "labelled", f"{where[at]}: {reason}")
        source.notes.append(
            f"NOT SCORED, although {len(found) - unknown.total()} of {len(found)} have a class by their {origin}: "
            f"{reason}"
        )
    return source
