"""Reading of archives from front to back, with a limit on unpacked size. Nothing is extracted to disk, so member names
are harmless.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from metarun.errors import UserError

RATIO = 200
"""Largest ratio of unpacked to packed size. Images and arrays pack to about a half, texts to a tenth."""
FREE = 64 << 20
"""Bytes that may be unpacked regardless of the ratio."""

DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, MemoryError)


class _Bounded(io.RawIOBase):
    """A packed stream that raises ``EOFError`` when more than ``limit`` bytes are read."""

    def __init__(self, inner: IO[bytes], limit: int) -> None:
        self.inner, self.limit = inner, limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.inner.tell()

    def seek(self, to: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("seek from elsewhere than the start")
        self._check(to)
        return self.inner.seek(to)

    def read(self, size: int = -1) -> bytes:
        content = self.inner.read(min(size if size >= 0 else self.limit + 1, self.limit + 1))
        self._check(self.tell())
        return content

    def _check(self, to: int) -> None:
        if to > self.limit:
            raise EOFError(f"it unpacks to more than {RATIO} times its size")


class _Member:
    """An open archive member; errors while unpacking are raised as :class:`UserError`."""

    def __init__(self, inner: IO[bytes], name: str) -> None:
        self.inner, self.name = inner, name

    def read(self, size: int = -1) -> bytes:
        return self._guarded(self.inner.read, size)

    def readline(self, size: int = -1) -> bytes:
        return self._guarded(self.inner.readline, size)

    def _guarded(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            return read(size)
        except DAMAGE as error:
            raise UserError(f"{self.name}: cannot be unpacked ({_reason(error)})") from error


def members(path: Path, wanted: set[str] | None = None, content: bool = True) -> Iterator[tuple[str, _Member]]:
    """Yield (name, open member) of every file in a .zip, .tar or .tar.gz archive.

    Links and devices in a tar are skipped.

    Args:
        path: The archive.
        wanted: Names to yield; all files if omitted.
        content: If false, members are not opened and the second value is ``None``.

    Raises:
        UserError: The archive is damaged, or unpacks to far more than its size.
    """
    nothing: Any = None
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if info.is_dir() or (wanted is not None and info.filename not in wanted):
                        continue
                    refuse_bomb(info)
                    yield info.filename, _Member(archive.open(info), f"{path}/{info.filename}") if content else nothing
        else:
            with path.open("rb") as file, _tar(file, path) as tar:
                for member in tar:
                    if member.isreg() and not member.issparse() and (wanted is None or member.name in wanted):
                        opened: Any = tar.extractfile(member)
                        yield member.name, _Member(opened, f"{path}/{member.name}") if content else nothing
    except DAMAGE as error:
        raise UserError(f"{path}: not a readable archive ({_reason(error)}); fetch it again") from error


def refuse_bomb(info: zipfile.ZipInfo) -> None:
    """Raise ``EOFError`` for a member that unpacks to far more than its packed size."""
    if info.file_size > FREE + RATIO * info.compress_size:
        raise EOFError(f"{info.filename} unpacks to more than {RATIO} times its size")


def _tar(file: IO[bytes], path: Path) -> tarfile.TarFile:
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not packed:
        return tarfile.open(fileobj=file, mode="r:")
    unpacked: Any = _Bounded(gzip.GzipFile(fileobj=file), FREE + RATIO * path.stat().st_size)  # type: ignore[arg-type]
    return tarfile.open(fileobj=unpacked, mode="r:")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
