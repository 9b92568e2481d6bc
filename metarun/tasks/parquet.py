"""Parquet files that users bring: tables, and labels in the form of the Hugging Face hub.

They are read as data, within limits: no column is unpickled, and no path inside a file is followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from metarun.errors import UserError, nearest, require
from metarun.extras import imported
from metarun.untrusted import LARGEST_ARRAYS, parse_json

ENDING = ".parquet"
MOST_CELLS = 20_000_000
"""Largest number of cells of a table; in memory they take some 100 bytes each."""
ROWS_AT_ONCE = 256


def open_parquet(path: Path) -> Any:
    """Open a file as pyarrow's ``ParquetFile``.

    Raises:
        UserError: pyarrow is missing, or the file cannot be read.
    """
    imported("pyarrow", f"{path}: a parquet file", "parquet")
    from pyarrow import ArrowException, parquet

    try:
        return parquet.ParquetFile(path)
    except (ArrowException, OSError, ValueError, MemoryError) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> UserError:
    """Return the error of a file that pyarrow cannot read."""
    return UserError(f"{path}: not a readable parquet file ({' '.join(str(error).split())[:120]})")


def class_names(opened: Any, where: str) -> dict[str, list[str]]:
    """Return the names of classes by column that a file of the Hugging Face hub states for labels that are numbers.

    Args:
        opened: The opened file.
        where: Name of the file for messages.

    Raises:
        UserError: What the file states has another form.
    """
    facts = (opened.schema_arrow.metadata or {}).get(b"huggingface")
    features = parse_json(facts, f"{where}: its entry 'huggingface'").get("info") if facts else None
    features = features.get("features") if isinstance(features, dict) else None
    if not isinstance(features, dict):
        return {}
    stated = {column: each.get("names") for column, each in features.items() if isinstance(each, dict)}
    return {column: [str(name) for name in names] for column, names in stated.items() if isinstance(names, list)}


def read_rows(path: Path) -> tuple[list[str], list[list[Any]], list[str]]:
    """Read the columns of numbers, words and dates of a file.

    NaN and the label -1 of a class become ``None``, labels with names these names, and dates text.

    Returns:
        Names of the columns, the rows, and notes on columns that are not read.

    Raises:
        UserError: The file cannot be read, is too large, or has no such column.
    """
    opened = open_parquet(path)
    schema = opened.schema_arrow
    twice = next((name for i, name in enumerate(schema.names) if name in schema.names[:i]), None)
    require(twice is None, f"{path}: two columns are called '{twice}'")
    names, notes = [], []
    for field in schema:
        if field.name.startswith("__index_level_"):  # the index of a pandas table without a name
            continue
        if _is_readable(field.type):
            names.append(field.name)
        else:
            notes.append(f"not read: {field.name} ({field.type!s:.40})")
    rows = opened.metadata.num_rows
    require(bool(names) or not notes, f"{path}: no column of numbers, words or dates; {'; '.join(notes)}")
    require(rows * len(names) <= MOST_CELLS,
            f"{path}: has {rows:,} rows of {len(names)} columns; at most {MOST_CELLS:,} cells are read")  # fmt: skip
    words = class_names(opened, str(path))
    found: list[list[Any]] = []
    for batch in batches(opened, path, names):
        columns = [_values(batch.column(name), words.get(name), f"{path}, column '{name}'") for name in names]
        found += [list(row) for row in zip(*columns, strict=True)]
    return names, found, notes


def labels(path: Path, column: str | None, required: bool, unnamed: str = "{}") -> tuple[str | None, list[str | None]]:
    """Return the column of classes and the class of each row, ``None`` where there is none.

    Args:
        path: The file.
        column: Name of the column; ``None``: ``label``, else the only column with named classes.
        required: If true, the column must be there and have a class in each row.
        unnamed: Form of the name of a class that is a number.

    Raises:
        UserError: The column is missing, or a class is.
    """
    opened = open_parquet(path)
    there, words = opened.schema_arrow.names, class_names(opened, str(path))
    if column is None:
        stated = [name for name in words if name in there]
        column = "label" if "label" in there else stated[0] if len(stated) == 1 else None
        require(column is not None or not required,
                f"{path}: no column 'label'; --target COLUMN names the column of the classes   columns: "
                f"{', '.join(there[:20])}")  # fmt: skip
    if column is None or column not in there:
        require(not required, f"--target {column}: {path} has no such column{nearest(str(column), there)}   columns: "
                f"{', '.join(there[:20])}")  # fmt: skip
        return None, [None] * opened.metadata.num_rows
    field = opened.schema_arrow.field(column)
    require(_is_readable(field.type), f"{path}: the column '{column}' holds no classes but {field.type!s:.40}")
    found: list[str | None] = []
    for batch in batches(opened, path, [column]):
        values = _values(batch.column(column), words.get(column), f"{path}, column '{column}'")
        named = [value if isinstance(value, str) or value is None else unnamed.format(value) for value in values]
        found += [name.strip() or None if name else None for name in named]
    if required and None in found:
        raise UserError(f"{path}, row {found.index(None) + 1}: '{column}' has no class")
    return column, found


def batches(opened: Any, path: Path, columns: Sequence[str], limit: int | None = LARGEST_ARRAYS) -> Iterator[Any]:
    """Yield batches of rows. At most ``limit`` bytes are decoded: a small file may hold repetitions of much.

    Raises:
        UserError: The file is damaged, or decodes to more.
    """
    from pyarrow import ArrowException

    decoded = 0
    try:
        for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(columns)):
            decoded += batch.nbytes
            if limit is not None and decoded > limit:
                raise UserError(f"{path}: decodes to more than {limit:,} bytes")
            yield batch
    except (ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise unreadable(path, error) from None


def _values(column: Any, words: Sequence[str] | None, where: str) -> list[Any]:
    """Return a column's cells as plain values."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("s", kind.tz), safe=False).cast(pa.timestamp("s"))
    elif pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        column = column.cast(pa.float64())
    found = [_plain(value) for value in column.to_pylist()]
    if words is None or not pa.types.is_integer(kind):
        return found
    wrong = next((value for value in found if value is not None and not -1 <= value < len(words)), None)
    require(wrong is None, f"{where}: the label {wrong} is none of its {len(words)} named classes")
    return [None if value is None or value < 0 else words[value] for value in found]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, date):
        return value.isoformat()
    return None if value != value else value


def _is_readable(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = ("boolean", "integer", "floating", "decimal", "string", "large_string", "string_view", "date", "timestamp",
             "null")  # fmt: skip
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)
