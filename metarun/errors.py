"""Exceptions for wrong usage, failed runs and stopped runs, and helpers for their messages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from traceback import FrameSummary


class UserError(Exception):
    """The request cannot be carried out. The message is printed without a traceback; exit status 2."""


class RunFailed(Exception):
    """A valid run failed (NaN, a full disk, a lost file). Exit status 1."""


class Interrupted(BaseException):
    """A signal stopped the run after a checkpoint. Exit status 128 + signal number.

    Like KeyboardInterrupt it is not an ``Exception``: a sweep must stop too, rather than continue with the next job.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


class Pruned(Exception):
    """A search stopped the run early, because other trials were better after as many iterations."""


concealed: dict[str, str] = {}
"""Values that must not be displayed and their replacements; for environment variables, the expression."""


def conceal(text: str) -> str:
    """Replace values of environment variables in ``text`` by their expressions, and remove passwords from URLs."""
    for value in sorted(concealed, key=len, reverse=True):
        if len(value) > 3:  # shorter ones occur in ordinary words
            text = text.replace(value, concealed[value])
    return re.sub(r"(\w://)[^/\s@:]+:[^/\s@]+@", r"\1...@", text)


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return a suggestion for a misspelt word, ``" - did you mean 'maml'?"``, or an empty string."""
    from difflib import get_close_matches

    known = {choice.lower(): choice for choice in choices}
    found = get_close_matches(str(word).lower(), known, n=1, cutoff=0.6)
    return f" - did you mean '{known[found[0]]}'?" if found else ""


def listed(names: Iterable[str], most: int = 100) -> str:
    """Return names for a message, with commas; of more than ``most``, the first twenty and how many there are."""
    known = list(names)
    return ", ".join(known) if len(known) <= most else f"{', '.join(known[:20])}, ... ({len(known)} in all)"


def nearest_path(path: str | os.PathLike[str]) -> str:
    """Return a suggestion for a path that does not exist, from the folder that lacks its first missing part.

    Examples:
        ``" - did you mean 'photos/known'?"``, or an empty string if nothing there has a similar name.
    """
    from difflib import get_close_matches
    from pathlib import Path

    try:
        given = Path(path).expanduser()
        missing = next(each for each in (*reversed(given.parents), given) if not each.exists())
        names = [name for name in os.listdir(missing.parent) if not name.startswith(".")]
    except (OSError, ValueError, RuntimeError, StopIteration):
        return ""
    close = get_close_matches(missing.name, names, n=1, cutoff=0.5)
    return f" - did you mean '{missing.parent / close[0]}'?" if close else ""


def require(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


def reason(error: OSError) -> str:
    """Describe a failed file operation in one line: the file and the reason."""
    why = (error.strerror or str(error) or type(error).__name__).lower()
    return f"{shortened(error.filename)}: {why}" if error.filename is not None else why


def shortened(text: object, most: int = 120) -> str:
    """Return ``text`` for a message: on one line, cut in the middle if it is long, unprintable characters escaped."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
    return shown if len(shown) <= most else f"{shown[: most // 2]}...{shown[-most // 4 :]}"


foreign: set[str] = set()
"""Import paths of the components of this process that are not metarun's own."""


def users_frame(error: BaseException) -> FrameSummary | None:
    """Return the innermost frame of an exception's traceback that is a user's own code; ``None`` if there is none.

    Metarun, Python's library and everything under a folder of installed packages, whichever interpreter or environment
    it belongs to, are not the user's.
    """
    import sysconfig
    from traceback import extract_tb

    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")]
    known = tuple(f"{folder}{os.sep}" for folder in (os.path.dirname(__file__), *installed))
    for frame in reversed(extract_tb(error.__traceback__)):
        packaged = {"site-packages", "dist-packages"}.intersection(frame.filename.split(os.sep))
        if not packaged and not frame.filename.startswith(("<", *known)) and os.path.isfile(frame.filename):
            return frame
    return None


def users_place(error: BaseException) -> str | None:
    """Return the innermost location in a user's own code, ``FILE:LINE, in FUNCTION,``; ``None`` if there is none."""
    frame = users_frame(error)
    return frame and f"{frame.filename}:{frame.lineno}, in {frame.name},"
