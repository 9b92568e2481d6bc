"""Advisory locks on open files, which the system releases when their holder ends for any reason, also by a kill."""

from __future__ import annotations

import importlib
import time
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

POLL = 0.05
"""Seconds between attempts to get a lock where the system cannot wait for it."""


def try_lock(file: IO[bytes], shared: bool = False) -> bool:
    """Lock an open file, without waiting, until it is closed.

    Args:
        file: The file, opened for writing, or for reading if ``shared``.
        shared: True if other holders of shared locks are admitted. Without ``fcntl`` every lock is exclusive.

    Returns:
        False if another process holds a lock.

    Raises:
        OSError: The file system does not support locks.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        else:
            msvcrt: Any = importlib.import_module("msvcrt")
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    return True


def lock(file: IO[bytes]) -> None:
    """Wait until an open file is locked; it stays so until it is closed."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)
    else:
        while not try_lock(file):
            time.sleep(POLL)
