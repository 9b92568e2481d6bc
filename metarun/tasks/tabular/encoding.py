"""Columns of a user's table as numbers: types are inferred from the support rows, and every oddity is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, nan
from typing import Any, Literal

from metarun.errors import UserError, listed, nearest, require
from metarun.tasks.tables import LARGEST, Table, shown
from metarun.tasks.tabular.cells import date_formats, is_gap, number_format, parse_date, read_number

LEVELS = 30
"""Largest number of categories of a column that also holds numbers, or whose words are mostly different."""
MOST_COLUMNS = 100
Type = Literal["numbers", "categories", "dates"]


@dataclass(frozen=True)
class Column:
    """Reading of a column.

    Attributes:
        name: Name of the column.
        type: Type of its values.
        levels: Its categories, sorted; the number of a category is its place. Empty for other types.
        format: Format of its dates or numbers; empty for plain numbers.
    """

    name: str
    type: Type
    levels: tuple[str, ...] = ()
    format: str = ""

    def number(self, value: Any) -> float:
        """Return a cell as a number; NaN for a gap and for what the support rows do not have."""
        if is_gap(value):
            return nan
        if self.type == "categories":
            word = str(value).strip()
            return float(self.levels.index(word)) if word in self.levels else nan
        if self.type == "dates":
            date = parse_date(str(value), self.format)
            return nan if date is None else date
        number = read_number(value, self.format)
        return number if number is not None and isfinite(number) and abs(number) <= LARGEST else nan


@dataclass(frozen=True)
class Encoding:
    """Reading of a table's input columns, fixed by the support rows.

    Attributes:
        columns: The columns that are used.
        target: Name of the column to predict.
    """

    columns: tuple[Column, ...]
    target: str

    @classmethod
    def of(cls, table: Table, target: str) -> tuple[Encoding, list[str]]:
        """Infer the types of all columns but the target.

        Returns:
            The encoding, and notes on the types and on columns that are not used.

        Raises:
            UserError: There are too many columns, none is of use, or one mixes numbers and words.
        """
        names = [name for name in table.columns if name != target]
        require(
            len(names) <= MOST_COLUMNS,
            f"{table.path}: has {len(names):,} columns beside '{target}'; at most {MOST_COLUMNS} are read, leave some "
            "out",
        )
        used, notes = [], []
        different = {str([row.get(name) for name in table.columns]): row for _, row in table.rows}.values()
        for name in names:
            cells = [(where, row.get(name)) for where, row in table.rows]
            form = number_format([cell for _, cell in cells if not is_gap(cell)], table.decimal_commas)
            if reason := useless(name, [row.get(name) for row in different], form):  # a copied row has its number twice
                notes.append(f"not used: {name} ({reason})")
                continue
            column, remark = _typed(name, cells, form)
            used.append(column)
            notes += [f"{name}: {remark}"] if remark else []
        reasons = "; ".join(notes) or "there is no other column"
        require(bool(used), f"{table.path}: no column can predict '{target}': {reasons}")
        types = {each: [c.name for c in used if c.type == each] for each in ("numbers", "categories", "dates")}
        told = [f"{each}: {', '.join(found)}" for each, found in types.items() if found]
        return cls(tuple(used), target), ["; ".join(told), *notes]

    def rows(self, table: Table) -> tuple[list[list[float]], list[str]]:
        """Return the rows as numbers, with NaN for gaps, and notes on cells that are read as gaps.

        Raises:
            UserError: A column is missing.
        """
        for column in self.columns:
            if column.name not in table.columns:
                raise UserError(
                    f"{table.path}: no column '{column.name}', which is an input of the support set"
                    f"{nearest(column.name, table.columns)}   available: {listed(table.columns)}"
                )
        found, notes, gaps = [], [], 0
        for where, row in table.rows:
            values = []
            for column in self.columns:
                cell = row.get(column.name)
                values.append(column.number(cell))
                if is_gap(cell):
                    gaps += 1
                elif values[-1] != values[-1]:
                    known = nearest(str(cell).strip(), column.levels) if column.levels else ""
                    reason = (
                        "is none of the support set's categories"
                        if column.levels
                        else f"cannot be read as one of the {column.type}"
                    )
                    notes.append(f"{where}: '{column.name}' is {shown(cell)}, which {reason}; read as a gap{known}")
            found.append(values)
        if len(notes) > 6:
            notes = [*notes[:5], f"and {len(notes) - 5} more such cells"]
        return found, [*([f"{gaps} gap{'s' * (gaps > 1)}"] if gaps else []), *notes]


def useless(name: str, values: Sequence[Any], form: str) -> str | None:
    """Return why a column, with numbers in the format ``form``, tells nothing about other rows; ``None`` if it may."""
    given = [str(value).strip() for value in values if not is_gap(value)]
    if not given:
        return "no values"
    different = len(set(given))
    if different == 1:
        return f"always {shown(given[0])}"
    found = [read_number(value, form) for value in given]
    numbers = [number for number in found if number is not None]
    if len(numbers) == len(values) >= 10:
        steps = {b - a for a, b in pairwise(numbers)}
        named = name.lower() in ("id", "index", "row", "unnamed: 0") or name.lower().endswith(("_id", " id"))
        if steps == {1.0} or (named and different == len(given)):
            return "it numbers the rows"
    if not numbers and different > max(LEVELS, len(given) // 2) and not date_formats(given):
        return f"texts, {different} different ones in {len(given)} rows"
    return None


def _unclear(formats: Sequence[str]) -> bool:
    """Return whether dates may have the month first, as well as the day."""
    return any(form.startswith("%m") for form in formats) and any(form.startswith("%d") for form in formats)


def _infinite(count: int) -> str:
    if count == 0:
        return ""
    return "1 infinite number is read as a gap" if count == 1 else f"{count} infinite numbers are read as gaps"


def _typed(name: str, cells: Sequence[tuple[str, Any]], form: str) -> tuple[Column, str]:
    """Return a column by its values, with numbers in the format ``form``, and a remark.

    A misspelling is looked for in words of letters alone.
    """
    given = [(where, value) for where, value in cells if not is_gap(value)]
    words = [(where, str(value).strip()) for where, value in given if read_number(value, form) is None]
    if not words:
        infinite = sum(not isfinite(read_number(value, form) or 0.0) for _, value in given)
        written = f"numbers written as {form}, such as {shown(given[0][1])}" if form else ""
        return Column(name, "numbers", format=form), written or _infinite(infinite)
    texts = [str(value).strip() for _, value in given]
    if dates := date_formats(texts):
        remark = "days and months are unclear, read as month/day/year" if _unclear(dates) else ""
        return Column(name, "dates", format=dates[0]), remark
    counts = Counter(texts)
    if len(words) < len(given):
        where, word = words[0]
        require(
            len(counts) <= LEVELS,
            f"{where}: '{name}' is {shown(word)} and other rows have numbers ({len(given) - len(words)} of "
            f"{len(given)}); correct the cell, leave it empty, or leave the column out",
        )
        remark = f"numbers and words, such as {shown(word)}, are read as categories"
    else:
        remark = ""
    levels = tuple(sorted(counts))
    for level in levels:
        others = [other for other in levels if counts[other] > 2]
        if counts[level] == 1 and level.isalpha() and (hint := nearest(level, others)):
            remark = f"{shown(level)} occurs once{hint}"
    return Column(name, "categories", levels), remark
