"""Numbers and dates as people write them in the cells of tables: with units, separators, and the day first or last."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from metarun.tasks.tables import is_blank, parse_number

GAPS = {"?", "na", "n/a", "nan", "null", "none", "-"}
"""Words for a missing value, in lower case."""
ISO = "ISO"
"""Format of dates such as 2025-03-01 and 2025-03-01T12:30."""
DATES = (
    ISO, "%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y/%m/%d", "%d.%m.%Y", "%d.%m.%Y %H:%M",
    "%m/%d/%Y", "%m/%d/%Y %H:%M", "%d/%m/%Y", "%d/%m/%Y %H:%M",
)  # fmt: skip
"""Formats of dates. Those below ISO with hyphens are in learners that were stored before."""
NUMBERS = {
    "1,000.5": re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?"),
    "1.000,5": re.compile(r"[+-]?(?:\d{1,3}(?:[. \u00a0\u202f]\d{3})+|\d+)(?:,\d*)?"),
}
"""Formats of numbers besides plain ones, each named by an example."""
_UNIT = re.compile(r"^[$€£¥]\s*|\s*[%$€£¥]$")
_START = datetime(2000, 1, 1)


def is_gap(value: Any) -> bool:
    """Return whether a cell is empty or holds a word for a missing value."""
    return is_blank(value) or (isinstance(value, str) and value.strip().lower() in GAPS)


def read_number(value: Any, form: str = "") -> float | None:
    """Return a cell as a number, or ``None`` if it is none.

    Args:
        value: The cell.
        form: A key of :data:`NUMBERS`, with a percent sign or that of a currency allowed; empty for a plain number.
    """
    if not form or not isinstance(value, str):
        return parse_number(value)
    text, point = _UNIT.sub("", value.strip()), form[-2]
    if not NUMBERS[form].fullmatch(text):
        return None
    return float("".join(c for c in text if c.isdigit() or c in f"+-{point}").replace(point, "."))


def number_format(cells: Sequence[Any], decimal_commas: bool) -> str:
    """Return the format in which most cells are numbers: empty for plain ones, or a key of :data:`NUMBERS`.

    Args:
        cells: Cells that are no gaps.
        decimal_commas: Whether 1,500 is one and a half, rather than fifteen hundred.
    """
    if all(parse_number(cell) is not None for cell in cells):  # most columns; the others are read in every format
        return ""
    known = sorted(NUMBERS, key=lambda form: (form[-2] == ",") != decimal_commas)
    counts = {form: sum(read_number(cell, form) is not None for cell in cells) for form in ("", *known)}
    best = max(counts, key=lambda form: counts[form])
    return best if 2 * counts[best] >= len(cells) else ""


def parse_date(text: str, form: str) -> float | None:
    """Return a date as days since 2000, or ``None`` if it has another format than ``form``, one of :data:`DATES`."""
    try:
        date = datetime.fromisoformat(text.strip()) if form == ISO else datetime.strptime(text.strip(), form)
    except ValueError:
        return None
    if date.tzinfo is not None:
        date = date.astimezone(UTC).replace(tzinfo=None)
    return (date - _START).total_seconds() / 86400


def date_formats(texts: Sequence[str]) -> list[str]:
    """Return the formats that all of the texts have: none if they are not dates, two if days and months are unclear."""
    return [form for form in DATES if all(parse_date(text, form) is not None for text in texts)]
