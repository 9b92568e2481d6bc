"""Files that someone else may have written: read within limits, and written without following links."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from metarun.errors import UserError

LARGEST = 64 << 20
"""Largest size of a text file, in bytes."""
LARGEST_ARRAYS = 1 << 30
"""Largest unpacked size of a file's arrays, in bytes."""
LARGEST_YAML = 4 << 20
DEEPEST = 64
"""Largest nesting depth of a YAML file."""
MOST_NODES = 200_000
"""Largest number of values in a YAML file, counting aliased ones each time."""
LONGEST_INTEGER = 20
"""Largest number of digits of an integer in JSON; four times as many in YAML, which has other notations."""

_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_SAFE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SAFE_LOADER):
    """PyYAML's safe loader with a limit on the length of integers."""

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > 4 * LONGEST_INTEGER:
            raise ValueError(f"a whole number of {len(node.value)} digits")
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


_WANDB_LOG = "wandb/*/logs/debug-core.log"


def refuse_links(folder: Path, besides: Sequence[str] = ()) -> None:
    """Raise :class:`UserError` for a link, pipe or device at any depth of ``folder``, which may itself be a link.

    W&B's own links are allowed: those inside its folder, and ``wandb/<run>/logs/debug-core.log``, which points to its
    helper's log in the user's cache. Neither metarun nor a later W&B run, which has its own folder, opens that one.

    Args:
        folder: The folder.
        besides: Prefixes of names directly in ``folder`` that may be links.
    """
    for where, folders, files in os.walk(folder):
        inside_wandb = Path(where).relative_to(folder).parts[:1] == ("wandb",)
        for name in (*folders, *files):
            path = Path(where, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                if inside_wandb and (_stays_inside(path, folder / "wandb") or path.match(_WANDB_LOG)):
                    continue
                if where == str(folder) and name.startswith(tuple(besides)):
                    continue
                raise UserError(f"{path} is a link, and nothing is read or written through a link there; remove it")
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UserError(f"{path} is neither a file nor a folder (a pipe or a device); remove it")


def _stays_inside(link: Path, folder: Path) -> bool:
    target = os.readlink(link)
    return not os.path.isabs(target) and link.parent.joinpath(target).resolve().is_relative_to(folder.resolve())


def open_regular(path: Path, flags: int, follow: bool = False) -> int:
    """Open a regular file and return its descriptor. A file opened for writing must have no hard links.

    Raises:
        UserError: The path is a link, pipe or device, or has further hard links.
        OSError: As raised by ``os.open``.
    """
    safe = _SAFE & ~getattr(os, "O_NOFOLLOW", 0) if follow else _SAFE
    try:
        descriptor = os.open(path, flags | safe, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK) and path.is_symlink():
            raise UserError(f"{path} is a link, and nothing is read or written through a link there") from None
        if error.errno == errno.ENXIO:  # a pipe that nobody reads
            raise UserError(f"{path} is not a file") from None
        raise
    found = os.fstat(descriptor)
    writes = flags & (os.O_WRONLY | os.O_RDWR)
    if not stat.S_ISREG(found.st_mode) or (writes and found.st_nlink > 1):
        os.close(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        why = "is not a file" if not stat.S_ISREG(found.st_mode) else "has a second name elsewhere (a hard link)"
        raise UserError(f"{path} {why}; it is not {'written' if writes else 'read'}")
    return descriptor


def open_to_append(path: Path) -> IO[bytes]:
    """Open a file for appending, and create it if it is missing."""
    return os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "ab")


def read_bytes(path: Path, limit: int = LARGEST, follow: bool = False) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes; raises :class:`UserError` otherwise."""
    try:
        with os.fdopen(open_regular(path, os.O_RDONLY, follow), "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > limit:
        raise UserError(f"{path} is damaged: it has more than {limit:,} bytes")
    return content


def read_text(path: Path, limit: int = LARGEST, follow: bool = False) -> str:
    """Return the text of a UTF-8 file; errors and limits as in :func:`read_bytes`."""
    try:
        return read_bytes(path, limit, follow).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: not UTF-8 text (byte {error.start})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises :class:`UserError` for anything else."""
    return parse_json(read_text(path), str(path))


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object; raises :class:`UserError`, beginning with ``where``, for anything else."""
    try:
        found = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged: {_reason(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{where} is damaged: not a JSON object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def read_yaml(path: Path, follow: bool = False) -> Any:
    """Return the content of a YAML file.

    Raises:
        UserError: The file is damaged, too large, too deep, or too large after expansion of its aliases.
    """
    text = read_text(path, LARGEST_YAML, follow)
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {_reason(error)}") from None


def parse_yaml(text: str) -> Any:
    """Parse YAML; raises ``yaml.YAMLError``, or ``ValueError`` if it is too deep or expands to too many values."""
    _measure(text)
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError):
        raise
    except Exception:  # constructors of YAML types may raise anything
        raise ValueError("not YAML of plain values") from None


def _measure(text: str) -> None:
    """Check the expanded size of a YAML text without expanding it."""
    sizes: dict[str, int] = {}
    counts = [0]  # sizes of the open collections
    anchors: list[str | None] = [None]
    for event in yaml.parse(text, Loader=_Loader):
        size = 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in anchors:
                raise ValueError(f"the alias '{event.anchor}' leads in a circle")
            size = sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            counts.append(1)
            anchors.append(event.anchor)
            if len(counts) > DEEPEST:
                raise ValueError(f"more than {DEEPEST} levels of nesting")
            continue
        elif isinstance(event, yaml.CollectionEndEvent):
            size, anchor = counts.pop(), anchors.pop()
            if anchor is not None:
                sizes[anchor] = size
        elif not isinstance(event, yaml.ScalarEvent):
            continue
        counts[-1] += size
        if counts[-1] > MOST_NODES:
            raise ValueError(f"more than {MOST_NODES:,} values")


def read_arrays(path: Path, limit: int = LARGEST_ARRAYS) -> dict[str, Any]:
    """Read the numeric arrays in an .npz file, together at most ``limit`` bytes.

    Raises:
        UserError: The file is damaged, unpacks to more, or a header claims more than the file holds.
    """
    import numpy as np

    found = {}
    try:
        with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file, zipfile.ZipFile(file) as archive:
            if (unpacked := sum(info.file_size for info in archive.infolist())) > limit:
                raise ValueError(f"it unpacks to {unpacked:,} bytes")
            for info in archive.infolist():
                content = io.BytesIO(archive.read(info))
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, by_columns, kind = read[np.lib.format.read_magic(content)](content)
                data = content.read()
                if kind.kind not in "biuf" or math.prod(shape) * kind.itemsize != len(data):
                    raise ValueError(f"{info.filename} is no array of numbers of the length that it says")
                array = np.ndarray(shape, kind, data or None, order="F" if by_columns else "C")
                found[info.filename.removesuffix(".npy")] = array
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, MemoryError,
            zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        raise UserError(f"{path} cannot be read: {_reason(error)}") from None
    return found


def plain(value: Any) -> bool:
    """Return whether ``value`` consists of dictionaries with string keys, lists and plain values, within limits.

    Repeated values count each time, so that a walk through it terminates.
    """
    left = MOST_NODES

    def fits(value: Any, depth: int) -> bool:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEEPEST:
            return False
        if isinstance(value, dict):
            return all(isinstance(key, str) and fits(inner, depth + 1) for key, inner in value.items())
        if isinstance(value, list | tuple):
            return all(fits(inner, depth + 1) for inner in value)
        return value is None or isinstance(value, bool | int | float | str)

    return fits(value, 0)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
