"""Data files: search in data roots, caching, atomic writes, and downloads with a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarun import stopping
from metarun.errors import RunFailed, UserError, nearest_path
from metarun.locks import POLL, try_lock
from metarun.progress import Progress
from metarun.tasks.cache import cache_dir, cache_root

log = logging.getLogger("metarun")

Arrays = dict[str, NDArray[Any]]
Allocate = Callable[[tuple[int, ...]], NDArray[np.uint8]]


_KEPT = re.compile(r"[0-9a-f]{20}\.\w+|\..*")
"""Names of what the cache keeps by a digest, and of unfinished files."""


def find(root: str | os.PathLike[str] | None, *candidates: str) -> Path | None:
    """Return the first of ``candidates`` that exists.

    Args:
        root: An explicit data root (``task.root``). If given, it is the only place searched.
        candidates: Paths relative to a data root; ``"."`` is the root itself.

    Returns:
        The path. Without ``root``, ``METARUN_DATA`` is searched, then the cache, and ``None`` is returned if neither
        has it.

    Raises:
        UserError: ``root`` is not a folder or holds none of the candidates, or METARUN_DATA is not a folder.
    """
    if root is not None:
        base = Path(root).expanduser()
        if not base.exists():
            raise UserError(f"task.root={root}: no such folder{nearest_path(base)}")
        if not base.is_dir():
            raise UserError(f"task.root={root}: not a folder")
        found = _first(base, candidates)
        if found is None:
            raise UserError(f"task.root={root}: has none of {', '.join(candidates)}")
        return found
    if data := os.environ.get("METARUN_DATA"):
        if not Path(data).expanduser().is_dir():
            raise UserError(f"METARUN_DATA={data}: no such folder{nearest_path(data)}")
        if found := _first(Path(data).expanduser(), candidates):
            return found
    found = _first(cache_root(), candidates, holds_data)
    if found is not None:
        _used(_place("downloads", {"file": found.relative_to(cache_root()).as_posix()}, ".json"))
    return found


def _first(base: Path, candidates: tuple[str, ...], suits: Callable[[Path], bool] = Path.exists) -> Path | None:
    return next((base / name for name in candidates if suits(base / name)), None)


def holds_data(path: Path) -> bool:
    """Return whether a path in the cache is a file, or a folder with more than what :func:`cached` and others keep."""
    if path.is_dir():
        return any(not _KEPT.fullmatch(each.name) for each in path.iterdir())
    return path.exists()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, renamed to ``path`` if the block succeeds and removed otherwise.

    Concurrent writers are safe: each has its own temporary file, and readers see a complete file or none.
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
    """Return the arrays that ``build()`` computes, from the cache if they are there.

    A damaged file is rebuilt. If the cache cannot be written, a warning is logged and the next run builds the arrays
    again.

    Args:
        kind: Folder of the cache.
        key: JSON values that hold everything the result depends on; their hash names the file.
        build: Function that computes the arrays.
    """
    path = _place(kind, key, ".npz")
    there = path.exists()
    if there and (arrays := _stored(path)) is not None:
        return arrays
    if there:
        log.warning("%s is damaged and is built anew", path)
    with _alone(path):
        if (arrays := _stored(path)) is None:
            arrays = build()
            with _best_effort(path), atomic(path) as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            log.debug("built %s", path)
    return arrays


def _stored(path: Path) -> Arrays | None:
    """Return the arrays in a file of :func:`cached`; ``None`` if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    _used(path)
    log.debug("read %s", path)
    return arrays


def recalled(kind: str, key: Mapping[str, Any]) -> Any:
    """Return the JSON value that :func:`remember` stored under the same ``kind`` and ``key``; ``None`` if there is
    none.
    """
    path = _place(kind, key, ".json")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    _used(path)
    return value


def remember(kind: str, key: Mapping[str, Any], value: Any) -> None:
    """Store a JSON value in the cache for :func:`recalled`."""
    path = _place(kind, key, ".json")
    with _best_effort(path), atomic(path) as temporary:
        temporary.write_text(json.dumps(value), encoding="utf-8")


def mapped(kind: str, key: Mapping[str, Any], build: Callable[[Allocate], None], what: str = "") -> NDArray[np.uint8]:
    """Return a large uint8 array from the cache, memory-mapped. Writing to it changes no file.

    Args:
        kind: Folder of the cache.
        key: As in :func:`cached`.
        build: Function that fills the array if it is missing or damaged. It gets a function that allocates an array of
            a given shape, on disk, or in memory if the cache has no room.
        what: Description for ``metarun cache``.
    """
    path = _place(kind, key, ".npy")
    there = path.with_suffix(".json").exists()
    if there and (stored := _checked(path)) is not None:
        return stored
    if there:
        log.warning("%s is damaged and is built anew", path)
    with _alone(path):
        stored = _checked(path)
        return _filled(path, build, what) if stored is None else stored


def _checked(path: Path) -> NDArray[np.uint8] | None:
    """Return the array in a file of :func:`mapped`; ``None`` if it is missing or damaged."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        if json.loads(path.with_suffix(".json").read_text())["checksums"] != checksums(array):
            return None
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    _used(path)
    return array


def _filled(path: Path, build: Callable[[Allocate], None], what: str) -> NDArray[np.uint8]:
    """Build an array of :func:`mapped` and store it."""
    temporary = _temporary(path)
    array = np.empty(0, np.uint8)

    def allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        # Space is reserved at once: writing to a mapped file on a full disk kills the process without a message.
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
            with atomic(path.with_suffix(".json")) as note:
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
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a cache entry within the block: of processes that need it at the same time, one makes it.

    Raises:
        Interrupted: A signal asked the process to stop while it waited.
    """
    place, waits = path.with_name(f".{path.stem}.lock"), False
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a cache that cannot be written or locked: each builds its own
            place.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(place.open("ab"))
            while not try_lock(file):
                if not waits:
                    log.info("waiting for another process, which makes %s", path)
                waits = True
                stopping.raise_if_requested()
                time.sleep(POLL)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # where an open file cannot be deleted, it stays for `metarun cache`
                place.unlink(missing_ok=True)


@contextmanager
def _best_effort(path: Path) -> Iterator[None]:
    """Run a block that writes ``path`` in the cache; log its first failure for each folder instead of raising."""
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
    """Update the time of last use, by which `metarun cache` lists and clears."""
    with contextlib.suppress(OSError):
        os.utime(path)


def checksums(array: NDArray[np.uint8], block: int = 1 << 26) -> list[int]:
    """Return the CRC-32 of every ``block`` bytes, computed in threads."""
    flat = array.reshape(-1)
    with ThreadPoolExecutor(cpus()) as pool:
        return list(pool.map(lambda at: zlib.crc32(flat[at : at + block].data), range(0, len(flat), block)))


def cpus() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def download(url: str, known_hash: str, name: str) -> Path:
    """Download ``url`` into the cache as ``name``, unless the file is there already. Progress is written to stderr.

    Args:
        url: Address of the file.
        known_hash: pooch's ``"md5:..."`` or ``"sha256:..."``. A cached file with another hash is downloaded again.
        name: Path below the cache folder.

    Returns:
        Path of the file.

    Raises:
        RunFailed: The network fails or the checksum differs.
    """
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    path = cache_dir() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(path), Progress(name, unit="MB", scale=1e6, summary=True) as progress:
            downloader = pooch.HTTPDownloader(progressbar=progress)
            pooch.retrieve(url, known_hash, fname=path.name, path=path.parent, downloader=downloader)
    except ValueError as error:  # pooch raises it if the checksum differs
        raise RunFailed(f"{url}: the downloaded file has the wrong checksum") from error
    except OSError as error:  # the base class of all errors of requests
        reason = type(error).__name__ if len(str(error)) > 200 else error
        raise RunFailed(
            f"cannot download {url} ({reason}); put it as {name} under METARUN_DATA or task.root instead"
        ) from error
    remember("downloads", {"file": name}, {"file": name, "url": url})
    return path
