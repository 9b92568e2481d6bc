"""Standard output and error that do not stop a run when they cannot be written."""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False  # the constant of typing, for whose import help would wait
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TextIO


class Surviving:
    """A text stream that drops what it cannot write (broken pipe, closed terminal, full disk) instead of raising.

    Args:
        stream: The stream to write to; ``None``, Python's value for a closed stream, accepts everything.
        redirect: If true, redirect the stream's descriptor to /dev/null after a failure, for libraries and child
            processes that write to it directly.
    """

    def __init__(self, stream: TextIO | None, redirect: bool = False) -> None:
        self._stream = stream
        self._redirect = redirect
        self.error: Exception | None = None
        """The first failure."""

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                return self._stream.write(text)
            except (OSError, ValueError) as error:  # ValueError: it has been closed
                self._fall_silent(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._fall_silent(error)

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _fall_silent(self, error: Exception) -> None:
        self.error = self.error or error
        if self._redirect and self._stream is not None:
            try:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
            except (OSError, ValueError):
                pass


def survive() -> None:
    """Wrap this process's standard output and error in :class:`Surviving`, and open closed descriptors."""
    for number in (0, 1, 2):  # otherwise the next opened file would get the number and libraries would print to it
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Surviving):
            if hasattr(stream, "reconfigure"):  # a terminal may not know every character
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, Surviving(stream, redirect=True))


def lost() -> str | None:
    """Return why standard output could not be written; ``None`` if it could, or if its reader closed the pipe."""
    sys.stdout.flush()
    sys.stderr.flush()
    error = sys.stdout.error if isinstance(sys.stdout, Surviving) else None
    if error is None or (isinstance(error, OSError) and error.errno == errno.EPIPE):
        return None
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
