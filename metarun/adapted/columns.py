"""The columns of a support set's table, by which later files of the same form are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from metarun.errors import require
from metarun.tasks.tabular.cells import DATES, NUMBERS
from metarun.tasks.tabular.encoding import Column, Encoding, Type


@dataclass(frozen=True)
class Columns:
    """Columns of a table of numbers with a header, or of a table of any types.

    Attributes:
        inputs: Names of the inputs.
        targets: Names of the targets.
        encoding: Reading of a table's columns; ``None`` for rows of numbers.
    """

    inputs: list[str]
    targets: list[str]
    encoding: Encoding | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the columns as plain values."""
        encoding = None if self.encoding is None else asdict(self.encoding)
        return {"inputs": self.inputs, "targets": self.targets, "encoding": encoding}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Columns:
        """Rebuild the columns from :meth:`as_dict`.

        Raises:
            KeyError, TypeError, UserError: ``stored`` has another form.
        """
        encoding = stored["encoding"]
        if encoding is not None:
            columns = tuple(
                Column(str(each["name"]), each["type"], tuple(map(str, each["levels"])), str(each["format"]))
                for each in encoding["columns"]
            )
            require(all(each.type in get_args(Type) for each in columns), "unknown type of a column")
            known = {"numbers": ("", *NUMBERS), "dates": DATES, "categories": ("",)}
            require(all(each.format in known[each.type] for each in columns), "unknown format of a column")
            encoding = Encoding(columns, str(encoding["target"]))
        return cls([str(name) for name in stored["inputs"]], [str(name) for name in stored["targets"]], encoding)
