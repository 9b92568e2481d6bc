"""The pending request to stop, for long work below the training loop, such as embedding a data set."""

from __future__ import annotations

from collections.abc import Callable

from metarun.errors import Interrupted

_pending: list[Callable[[], int | None]] = []


def listen(pending: Callable[[], int | None]) -> None:
    """Ask a function for the signal that requested to stop, until :func:`forget`.

    Args:
        pending: Function that returns the number of the signal, or ``None``.
    """
    _pending.append(pending)


def forget() -> None:
    """Undo the last :func:`listen`."""
    _pending.pop()


def raise_if_requested() -> None:
    """Raise :class:`~metarun.errors.Interrupted` if a signal has asked the process to stop."""
    for pending in _pending:
        if (signal := pending()) is not None:
            raise Interrupted(signal)
