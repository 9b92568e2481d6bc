"""Reader of tables that users bring, CSV, JSON or parquet, for texts, labels and numbers."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from metarun.errors import UserError, listed, nearest, require
from metarun.tasks import parquet

Row = tuple[str, dict[str, Any]]
"""A row's location, such as ``data.csv, line 3``, and its values by column."""
CSV, JSON = {".csv": ",", ".tsv": "\t"}, (".jsonl", ".ndjson", ".json")
TABLES = (*CSV, *JSON, parquet.ENDING)
"""Endings of the files that are read; the CSV ones with their usual separator."""
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins with UTF-16's mark, and is looked for first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks and their encodings."""
LARGEST = float(np.finfo(np.float32).max)
_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?")


@dataclass
class Table:
    """The rows of a file and notes on reading it.

    Attributes:
        path: The file.
        columns: Names of the columns in order; ``column 1``, ``column 2``, ... if the file has no header.
        rows: Location and values of each row.
        header: True if the file names its columns.
        decimal_commas: True if numbers may be written with a decimal comma.
        notes: Remarks for the user: skipped rows, an unusual separator or encoding.
    """

    path: Path
    columns: list[str]
    rows: list[Row]
    header: bool = True
    decimal_commas: bool = False
    notes: list[str] = field(default_factory=list)

    def summary(self, used: Sequence[str]) -> str:
        """Describe the reading in one line: number of rows, columns ``used``, columns not used, and :attr:`notes`."""
        unused = [column for column in self.columns if column not in used]
        ignored = [f"not used: {listed(unused)}"] if unused else []
        return "; ".join([f"{len(self.rows)} rows of {', '.join(used)}", *ignored, *self.notes])

    def texts(self, column: str, what: str = "a text", key: str | None = None) -> list[str]:
        """Return the values of ``column`` as strings.

        Args:
            column: Name of the column.
            what: Description of a value for the error.
            key: Configuration key that names the column, for the error.

        Raises:
            UserError: The column is missing, or a value is empty or not a string.
        """
        return [text(where, row, column, what, key) for where, row in self.rows]

    def numbers(self, columns: Sequence[str]) -> list[list[float]]:
        """Return the values of ``columns`` row by row; raises :class:`UserError` for a value that is not a finite
        number.
        """
        return [[self._number(where, row, column) for column in columns] for where, row in self.rows]

    def is_empty(self, column: str) -> bool:
        """Return whether no row has a value in ``column``."""
        return all(is_blank(row.get(column)) for _, row in self.rows)

    def _number(self, where: str, row: Mapping[str, Any], column: str) -> float:
        value = row.get(column)
        require(not is_blank(value), f"{where}: '{column}' is empty; a number is required")
        number = parse_number(value)
        if number is None and self.decimal_commas and isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value):
            number = float(value.replace(",", "."))
        comma = isinstance(value, str) and "," in value
        hint = "; write a decimal point" if comma and _DECIMAL_COMMA.fullmatch(str(value)) else ""
        if number is None:
            raise UserError(f"{where}: '{column}' is {shown(value)}, not a number{hint}")
        require(np.isfinite(number), f"{where}: '{column}' is {shown(value)}, not a finite number")
        require(
            abs(number) <= LARGEST, f"{where}: '{column}' is {shown(value)}, too large; up to {LARGEST:.3g} is read"
        )
        return number


def read_table(path: Path) -> Table:
    """Read a .csv, .tsv, .jsonl, .ndjson, .json or .parquet file.

    Raises:
        UserError: The file cannot be read or is ambiguous. The message names the line and the column.
    """
    ending = path.suffix.lower()
    if ending not in TABLES:
        raise UserError(f"{path}: ends in '{path.suffix}'; allowed: {', '.join(TABLES)}")
    if ending == parquet.ENDING:
        names, cells, notes = parquet.read_rows(path)
        rows = [(f"{path}, row {n}", dict(zip(names, row, strict=True))) for n, row in enumerate(cells, start=1)]
        return Table(path, names, rows, notes=notes)
    content, notes = decoded(path)
    table = _separated(path, content, CSV[ending]) if ending in CSV else _json(path, content)
    table.notes = [*notes, *table.notes]
    return table


def decoded(path: Path) -> tuple[str, list[str]]:
    """Decode a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Returns:
        The text, and notes for the user on its encoding.

    Raises:
        UserError: The file cannot be read or is not text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    if encoding is None and b"\0" in data:
        encoding = _without_mark(data)
        require(encoding is not None, f"{path}: not a text file; export a spreadsheet as CSV in UTF-8")
    try:
        return data.decode(encoding or "utf-8"), [encoding.upper()] if encoding not in (None, "utf-8-sig") else []
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not {(encoding or 'utf-8').upper()} text (byte 0x{data[error.start]:02x}); save the "
            f"file as UTF-8, for example by: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None


def _without_mark(data: bytes) -> str | None:
    """Detect UTF-16 without a mark by the zeros in every second byte of mostly Latin text."""
    even, odd = data[0::2].count(0), data[1::2].count(0)
    if len(data) % 2 == 0 and max(even, odd) > len(data) // 4 and min(even, odd) == 0:
        return "utf-16-le" if odd else "utf-16-be"
    return None


def _separated(path: Path, content: str, usual: str) -> Table:
    separator = _separator(content, usual)
    notes = [] if separator == usual else [f"separated by {SEPARATORS[separator]}"]
    found = list(_records(path, content, separator))
    records = [(line, cells) for line, cells in found if any(cells)]
    if len(records) < len(found):
        notes.append(f"{len(found) - len(records)} empty rows skipped")
    if not records:
        return Table(path, [], [], notes=notes)
    line, names = records[0]
    numbered = [str(i) for i in range(len(names))]
    header = not all(parse_number(name) is not None for name in names if name)
    require(
        header or [name or number for name, number in zip(names, numbered, strict=True)] != numbered,
        f"{path}, line {line}: {', '.join(names)} may be names of columns or numbers; name the columns in a first line",
    )
    if not header:
        notes.append("no header: its first line is read as a row")
        names = [""] * len(names)
    rows = records[1:] if header else records
    used = max((i + 1 for _, cells in rows for i, cell in enumerate(cells) if cell), default=0)
    while names and header and not names[-1] and len(names) > used:
        names.pop()
    for other, cells in rows:
        require(
            not any(cells[len(names) :]),
            f"{path}, line {other}: more values than the {len(names)} columns of line {line} "
            "(a text with a comma needs quotes)",
        )
    names = [name or f"column {i}" for i, name in enumerate(names, start=1)]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    require(twice is None, f"{path}, line {line}: two columns are called '{twice}'")
    kept = [(f"{path}, line {n}", dict(zip(names, cells, strict=False))) for n, cells in rows]
    return Table(path, names, kept, header, separator != ",", notes)


def _separator(content: str, usual: str) -> str:
    """Return ``usual``, unless only one other separator gives the first rows several columns and ``usual`` does not."""

    def divides(separator: str) -> bool:
        try:
            with _unlimited_fields(content):
                rows = [row for row in islice(csv.reader(io.StringIO(content), delimiter=separator), 50) if any(row)]
        except csv.Error:
            return False
        return len({len(row) for row in rows}) == 1 and len(rows[0]) > 1

    fitting = [separator for separator in SEPARATORS if separator != usual and divides(separator)]
    return fitting[0] if len(fitting) == 1 and not divides(usual) else usual


def _records(path: Path, content: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record's first line number and its values, stripped of surrounding spaces."""
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    begins = 1
    try:
        with _unlimited_fields(content):
            for cells in reader:
                if cells:
                    yield begins, [cell.strip() for cell in cells]
                begins = reader.line_num + 1
    except csv.Error:
        raise UserError(
            f"{path}, line {begins}: a quoted value is not closed, or has a quote inside that is not written twice"
        ) from None


@contextmanager
def _unlimited_fields(content: str) -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters a value within the block."""
    limit = csv.field_size_limit(max(len(content), csv.field_size_limit()))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _json(path: Path, content: str) -> Table:
    rows = list(_items(path, content) if content.lstrip().startswith("[") else json_lines(path, content))
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    return Table(path, columns, rows)


def json_lines(path: Path, content: str) -> Iterator[Row]:
    """Yield one row for each line with a JSON object; blank lines are skipped."""
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield (
                f"{path}, line {number}",
                _object(f"{path}, line {number}", parse_json(f"{path}, line {number}", line)),
            )


def _items(path: Path, content: str) -> Iterator[Row]:
    """Yield the objects of a JSON list as rows."""
    found = parse_json(str(path), content)
    for number, item in enumerate(found, start=1):
        yield f"{path}, item {number}", _object(f"{path}, item {number}", item)


def _object(where: str, value: Any) -> dict[str, Any]:
    require(isinstance(value, dict), f'{where}: not a JSON object, such as {{"text": ..., "label": ...}}')
    return value


def parse_json(where: str, content: str) -> Any:
    """Parse JSON; raises :class:`UserError` if ``content`` is not JSON or repeats a key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise UserError(f"{where}: a key is there twice: {', '.join(key for key, _ in pairs)}")
        return values

    try:
        return json.loads(content, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if "\n" in content.strip() else f"column {error.colno}"
        raise UserError(f"{where}: not JSON ({error.msg}, {at})") from None
    except (ValueError, RecursionError):
        raise UserError(f"{where}: not JSON that can be read: numbers too long, or too many brackets") from None


def text(where: str, row: Mapping[str, Any], column: str, what: str = "a text", key: str | None = None) -> str:
    """Return the value of ``column`` as a non-empty string; raises :class:`UserError` otherwise."""
    if column not in row:
        available = ", ".join(map(str, row)) or "none"
        source = f" ({key})" if key else ""
        raise UserError(f"{where}: no column '{column}'{source}; available: {available}{nearest(column, row)}")
    value = row[column]
    if not isinstance(value, str | int) or is_blank(value):
        raise UserError(f"{where}: '{column}' is {shown(value)}, not {what}")
    found = str(value).strip()
    require(not _SURROGATE.search(found), f"{where}: '{column}' holds half of a character (a lone surrogate)")
    return found


def parse_number(value: Any) -> float | None:
    """Return ``value`` as a float, including infinities and NaN; ``None`` if it is not a number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return float("inf")
    if isinstance(value, str):
        value = value.strip()
        if _NUMBER.fullmatch(value) or value.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            return float(value)
    return None


def is_blank(value: Any) -> bool:
    """Return whether a cell is empty."""
    return value is None or (isinstance(value, str) and not value.strip())


def shown(value: Any) -> str:
    """Format a value for a message, at most 40 characters."""
    found = repr(value) if isinstance(value, str) else json.dumps(value, default=repr)
    return found if len(found) <= 40 else f"{found[:37]}..."
