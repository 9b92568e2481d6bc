"""Files that survive a kill at any moment: metrics, log, and atomic replacement."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from metarun import strict_json
from metarun.errors import RunFailed, UserError, conceal
from metarun.escape import printable
from metarun.untrusted import open_to_append


class MetricsFile:
    """metrics.jsonl: one JSON object a line, flushed. It is the source of which every tracker is a copy.

    Rows hold no clock times, so that a resumed run's file is byte-identical to that of an uninterrupted run.

    Args:
        path: The file.
        size: Number of bytes to keep; later rows of a killed run are cut off.

    Raises:
        RunFailed: The file is shorter than ``size``.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self._file = open_to_append(path)
        if self._file.tell() < size:
            raise RunFailed(f"{path} is shorter than when its checkpoint was written; it was changed since")
        self._file.truncate(size)
        self._file.seek(size)

    @property
    def size(self) -> int:
        """Number of bytes written so far."""
        return self._file.tell()

    def write(self, row: Mapping[str, Any]) -> None:
        try:
            self._file.write(strict_json.dumps(row).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise RunFailed(f"cannot write {self._file.name}: {error.strerror}") from None

    def sync(self) -> None:
        """Flush to disk, before a checkpoint that relies on these rows."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunFailed(f"cannot write {self._file.name}: {error.strerror}") from None

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a failed write has been reported already
            self._file.close()


class LogFile(logging.FileHandler):
    """A log file in UTF-8 that is appended to, is not a link, and hides concealed values."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(conceal(super().format(record)))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Ignore write errors such as a full disk, without a traceback for every line."""

    def _open(self) -> TextIOWrapper:
        return TextIOWrapper(open_to_append(Path(self.baseFilename)), encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write metarun's log messages to ``path`` too, if that can be written."""
    logger = logging.getLogger("metarun")
    try:
        handler: logging.Handler = LogFile(path)
    except OSError as error:
        logger.warning("metarun.log cannot be written: %s", error.strerror)
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def add_to_log(path: Path, text: str) -> None:
    """Append text to a log without a logger, such as a traceback."""
    with open_to_append(path) as file:
        file.write(printable(conceal(text)).encode(errors="backslashreplace"))


def make_output_folder(folder: Path) -> None:
    """Make the folder that ``--out`` names; raises :class:`UserError` if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "there is a file of that name" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"--out {folder}: no folder can be made there ({reason})") from None


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file by a temporary name, fsync and rename: readers see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
