"""Parquet files of encoded images, in the form of data sets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metarun.errors import require
from metarun.tasks.parquet import ENDING, batches, open_parquet
from metarun.tasks.vision.images import StoredImage
from metarun.untrusted import LARGEST_ARRAYS

IMAGE_NAMES = ("image", "img")
"""Names of the column of images, if several columns could be it."""


def image_column(opened: Any, path: Path) -> str | None:
    """Return the column of encoded images: of bytes, or of ``{bytes, path}``; ``None`` if there is none.

    Raises:
        UserError: Several columns could be it.
    """
    found = [field.name for field in opened.schema_arrow if _holds_bytes(field.type)]
    if len(found) > 1:
        usual = [name for name in IMAGE_NAMES if name in found]
        require(len(usual) == 1, f"{path}: the images may be in any of {', '.join(found)}; call one of them 'image'")
        return usual[0]
    return found[0] if found else None


def holds_images(path: Path) -> bool:
    """Return whether a path is a parquet file with a column of images."""
    return path.suffix.lower() == ENDING and image_column(open_parquet(path), path) is not None


def require_images(opened: Any, path: Path) -> str:
    """Return the column of encoded images; raises :class:`UserError` if there is none."""
    name = image_column(opened, path)
    require(name is not None, f"{path}: no column of images, which are bytes or {{bytes, path}}   columns: "
            f"{', '.join(opened.schema_arrow.names[:20])}")  # fmt: skip
    assert name is not None
    return name


def images(path: Path, limit: int | None = LARGEST_ARRAYS) -> Iterator[StoredImage]:
    """Yield the encoded images of a file, of which few are held in memory.

    Args:
        path: The file.
        limit: Largest number of bytes that are decoded; ``None``: any number.

    Raises:
        UserError: The file has no column of images, is damaged, or decodes to more.
    """
    opened = open_parquet(path)
    column, row = require_images(opened, path), 0
    for batch in batches(opened, path, [column], limit):
        for value in batch.column(0).to_pylist():
            row += 1
            content = value.get("bytes") if isinstance(value, dict) else value
            yield StoredImage(f"{path}, row {row}", content or b"")


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return "bytes" in names and _holds_bytes(kind.field(names.index("bytes")).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
