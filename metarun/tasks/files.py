"""Where data lie, and how they get there: data roots, the cache, atomic writes, downloads with a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarun.errors import RunFailed, UserError
from metarun.tasks.cache import cache_dir, cache_root

log = logging.getLogger("metarun")

Arrays = dict[str, NDArray[Any]]
Allocate = Callable[[tuple[int, ...]], NDArray[np.uint8]]


def find(root: str | os.PathLike[str] | None, *candidates: str) -> Path | None:
    """The first of ``candidates`` (paths below a data root, ``"."`` for the root itself) that exists.

    An explicit ``root`` (``task.root``) is the only place looked in, and it must hold one of them:
    :class:`~metarun.errors.UserError` otherwise. Else ``METARUN_DATA``, then the cache, or ``None``.
    """
    if root is not None:
        base = Path(root).expanduser()
        if not base.exists():
            raise UserError(f"task.root={root}: no such folder")
        if not base.is_dir():
            raise UserError(f"task.root={root}: not a folder")
        found = _first(base, candidates)
        if found is None:
            raise UserError(f"task.root={root}: has none of {', '.join(candidates)}")
        return found
    data = os.environ.get("METARUN_DATA")
    if data and (found := _first(Path(data).expanduser(), candidates)):
        return found
    found = _first(cache_root(), candidates)
    if found is not None:
        _used(_place("downloads", {"file": found.relative_to(cache_root()).as_posix()}, ".json"))
    return found


def _first(base: Path, candidates: tuple[str, ...]) -> Path | None:
    return next((base / name for name in candidates if (base / name).exists()), None)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed over it when the block ends well, else removed.

    Concurrent writers are safe: each has its own temporary file, and readers see a whole file or none.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error}); set METARUN_CACHE") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")


def cached(kind: str, key: Mapping[str, Any], build: Callable[[], Arrays]) -> Arrays:
    """The arrays that ``build()`` makes, kept in the cache under ``kind`` and a hash of ``key``.

    ``key`` (JSON values) must hold everything that the result depends on. An unreadable file is built anew; a cache
    that cannot be written to costs the next run the same work, and nothing else.
    """
    path = _place(kind, key, ".npz")
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = dict(stored)
            _used(path)
            return arrays
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            log.warning("%s is damaged and is built anew", path)
    arrays = build()
    with _best_effort(path), atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return arrays


def recalled(kind: str, key: Mapping[str, Any]) -> Any:
    """The JSON value that :func:`remember` kept under the same ``kind`` and ``key``; ``None`` if there is none."""
    path = _place(kind, key, ".json")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    _used(path)
    return value


def remember(kind: str, key: Mapping[str, Any], value: Any) -> None:
    """Keep a JSON value in the cache for :func:`recalled`."""
    path = _place(kind, key, ".json")
    with _best_effort(path), atomic(path) as temporary:
        temporary.write_text(json.dumps(value), encoding="utf-8")


def mapped(kind: str, key: Mapping[str, Any], build: Callable[[Allocate], None], what: str = "") -> NDArray[np.uint8]:
    """A large uint8 array from the cache, mapped from its file rather than read.

    ``build(allocate)`` makes it where it is missing or damaged: it fills the array that ``allocate(shape)`` gives it,
    which lies in memory where the cache has no room. ``key`` as in :func:`cached`; ``what`` describes the array to
    whoever lists the cache. Writing to the array changes no file.
    """
    path = _place(kind, key, ".npy")
    beside = path.with_suffix(".json")
    if beside.exists():
        try:
            array = np.load(path, mmap_mode="c", allow_pickle=False)
            if json.loads(beside.read_text())["checksums"] == checksums(array):
                _used(path)
                return array
        except (OSError, ValueError, EOFError, KeyError, TypeError):
            pass
        log.warning("%s is damaged and is built anew", path)
    temporary = _temporary(path)
    array = np.empty(0, np.uint8)

    def allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        # Space is taken at once: a mapped file that cannot grow ends the process without a word.
        nonlocal array
        with _best_effort(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            if hasattr(os, "posix_fallocate"):
                with temporary.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
            return array
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        array = np.empty(shape, np.uint8)
        return array

    try:
        build(allocate)
        if not isinstance(array, np.memmap):
            return array
        array.flush()
        sums = checksums(array)
        with _best_effort(path):
            temporary.replace(path)
            with atomic(beside) as note:
                note.write_text(json.dumps({"checksums": sums, "what": what}))
            return np.load(path, mmap_mode="c", allow_pickle=False)
        return array
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _place(kind: str, key: Mapping[str, Any], ending: str) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    return cache_root() / kind / f"{digest}{ending}"


@contextmanager
def _best_effort(path: Path) -> Iterator[None]:
    """A block that writes ``path`` in the cache: where that fails, it says so once and ends."""
    try:
        yield
    except (OSError, UserError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        if str(path.parent) not in _unwritable:
            _unwritable.add(str(path.parent))
            log.warning(
                "the cache cannot keep %s (%s): the next run does this work again; set METARUN_CACHE", path, reason
            )


_unwritable: set[str] = set()


def _used(path: Path) -> None:
    """Note the time of last use, by which `metarun cache` lists and clears."""
    with contextlib.suppress(OSError):
        os.utime(path)


def checksums(array: NDArray[np.uint8], block: int = 1 << 26) -> list[int]:
    """CRC-32 of every ``block`` bytes, computed in threads."""
    flat = array.reshape(-1)
    with ThreadPoolExecutor(cpus()) as pool:
        return list(pool.map(lambda at: zlib.crc32(flat[at : at + block].data), range(0, len(flat), block)))


def cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def download(url: str, known_hash: str, name: str) -> Path:
    """Fetch ``url`` into the cache as ``name`` unless it lies there already; progress goes to stderr.

    ``known_hash`` is pooch's ``"md5:..."`` or ``"sha256:..."``, checked also for a file already there (one
    that differs is fetched again). Raises :class:`~metarun.errors.RunFailed` where network or checksum fails.
    """
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    path = cache_dir() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with Progress(name) as progress:
            downloader = pooch.HTTPDownloader(progressbar=progress)
            pooch.retrieve(url, known_hash, fname=path.name, path=path.parent, downloader=downloader)
    except ValueError as error:  # pooch's word for a checksum that differs
        raise RunFailed(f"{url}: what arrived is not the expected file (its checksum differs)") from error
    except OSError as error:  # every error of requests is one
        reason = type(error).__name__ if len(str(error)) > 200 else error
        raise RunFailed(
            f"cannot download {url} ({reason}); put the file under METARUN_DATA or task.root instead"
        ) from error
    remember("downloads", {"file": name}, {"file": name, "url": url})
    return path


class Progress:
    """One line on stderr, rewritten on a terminal, silent elsewhere but for its last state.

    Has the few methods of tqdm that pooch calls; ``scale`` divides what is shown (bytes to MB).
    """

    def __init__(self, label: str, total: int = 0, scale: float = 1e6, unit: str = "MB") -> None:
        self.label, self.total, self.scale, self.unit = label, total, scale, unit
        self.done, self.shown = 0, -1

    def update(self, count: int = 1) -> None:
        self.done += count
        percent = 100 * self.done // self.total if self.total else self.done // 1_000_000
        if percent != self.shown and sys.stderr.isatty():
            self.shown = percent
            self._write("\r", "")

    def _write(self, start: str, end: str) -> None:
        sys.stderr.write(f"{start}{self.label}: {self._amount()}\x1b[K{end}")
        sys.stderr.flush()

    def _amount(self) -> str:
        digits = 0 if self.scale == 1 else 1
        total = f" of {self.total / self.scale:.{digits}f}" if self.total else ""
        return f"{self.done / self.scale:.{digits}f}{total} {self.unit}"

    def reset(self) -> None:
        """pooch resets before its last update, which then stands for the whole."""
        self.done = 0

    def close(self) -> None:
        """Called by pooch; the end of the ``with`` block ends the line."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.done and sys.stderr.isatty():
            self._write("\r", "\n")
        elif self.done:
            sys.stderr.write(f"{self.label}: {self._amount()}\n")
