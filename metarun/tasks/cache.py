"""The cache folder: its location, its entries, and deleting them.

It imports the standard library only, so that ``metarun cache`` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarun.errors import UserError

MADE = re.compile(r"([0-9a-f]{16,64})\.(npz|npy|json)")
"""File names in the cache's folders: a hash of everything that the content depends on."""
UNFINISHED = re.compile(r"\.(.+)\.(\d+\.[0-9a-f]{8}|lock)")
"""Temporary files and locks left by a process that was killed while writing."""
KINDS = {
    "index": "content of data folders",
    "plans": "tuned execution plans",
    "glyphs": "rendered letters",
    "omniglot": "decoded Omniglot",
    "embeddings": "embedded texts",
    "judge": "classifiers that evaluate generated images",
}
"""Descriptions of the cache's folders."""


def cache_root() -> Path:
    """Return the path of the cache folder, ``METARUN_CACHE`` or ``~/.cache/metarun``. It may not exist yet."""
    try:
        return Path(os.environ.get("METARUN_CACHE") or "~/.cache/metarun").expanduser()
    except RuntimeError:  # a user without a home
        return Path(os.devnull, "metarun")


def cache_dir() -> Path:
    """Return the path of the cache folder and create it if it is missing."""
    path = cache_root()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the cache {path} ({error.strerror}); set METARUN_CACHE") from error
    return path


@dataclass
class Entry:
    """A cached item: a description, its files, their size in bytes, and the time of last use in seconds since the
    epoch.
    """

    what: str
    files: list[Path]
    size: int
    used: float


def entries() -> list[Entry]:
    """Return everything that metarun keeps in the cache, largest first. Links are not followed; foreign files are
    ignored.
    """
    found = {entry.files[0]: entry for entry in (*_downloads(), *_made())}
    return sorted(found.values(), key=lambda entry: -entry.size)


def remove(chosen: Iterable[Entry]) -> int:
    """Delete entries and return the number of bytes freed; raises :class:`UserError` if a file cannot be deleted."""
    freed = 0
    for entry in chosen:
        for file in entry.files:
            try:
                size = file.lstat().st_size
                file.unlink()
                freed += size
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UserError(f"cannot delete {file} ({error.strerror})") from None
    return freed


def shown_size(size: float) -> str:
    """Format a size in bytes: ``1.3 GB``."""
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _made() -> Iterator[Entry]:
    """Yield arrays and JSON notes; files with the same hash form one entry."""
    root = cache_root()
    for folder in _folders(root):
        by_hash: dict[str, list[Path]] = {}
        for file in _files(folder):
            if match := MADE.fullmatch(file.name):
                by_hash.setdefault(match[1], []).append(file)
            elif match := UNFINISHED.fullmatch(file.name):
                yield from _entry("left by a process that was killed", [file])
        for files in by_hash.values():
            files.sort(key=lambda file: file.suffix != ".npy")
            note = next((file for file in files if file.suffix == ".json"), None)
            what = str(_read(note).get("what") or "") if note and len(files) > 1 else ""
            described = KINDS.get(folder.name, "decoded images" if what else "of another version")
            if folder.name != "downloads":
                yield from _entry(f"{folder.name}: {what or described}", files)


def _downloads() -> Iterator[Entry]:
    root = cache_root()
    for note in _files(root / "downloads"):
        name = _read(note).get("file")
        if isinstance(name, str) and MADE.fullmatch(note.name):
            file = root / name
            inside = not os.path.isabs(name) and ".." not in Path(name).parts
            if inside and file.is_file() and not file.is_symlink():
                yield from _entry(f"download: {name}", [file, note])


def _entry(what: str, files: list[Path]) -> Iterator[Entry]:
    with contextlib.suppress(OSError):  # cleared meanwhile
        stats = [file.lstat() for file in files]
        yield Entry(what, files, sum(s.st_size for s in stats), max(s.st_mtime for s in stats))


def _read(note: Path) -> dict[str, Any]:
    try:
        value = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _folders(root: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(Path(e.path) for e in os.scandir(root) if e.is_dir(follow_symlinks=False))
    return []


def _files(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(Path(e.path) for e in os.scandir(folder) if e.is_file(follow_symlinks=False))
    return []
