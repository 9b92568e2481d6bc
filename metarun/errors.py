"""The ways a command ends badly: asked for the impossible, failed, or was stopped."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """What was asked cannot be done. Printed as it stands, without a traceback; exit status 2."""


class RunFailed(Exception):
    """The run was asked rightly and failed (NaN, a full disk, a lost file). Exit status 1."""


class Interrupted(BaseException):
    """A signal stopped the run after a checkpoint. Exit status 128 + signal number.

    Like KeyboardInterrupt it is no ``Exception``: a sweep must stop too, not go on with the next job.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


class Pruned(Exception):
    """A search gave the run up, since others did better after as many iterations."""


concealed: dict[str, str] = {}
"""Values that are not to be shown, and what is shown instead: of environment variables, the expression."""


def conceal(text: str) -> str:
    """``text`` with what is written in the configuration in place of values that it had from the environment.

    Passwords in addresses are left out too.
    """
    for value in sorted(concealed, key=len, reverse=True):
        if len(value) > 3:  # shorter ones are in every other word
            text = text.replace(value, concealed[value])
    return re.sub(r"(\w://)[^/\s@:]+:[^/\s@]+@", r"\1...@", text)


def nearest(word: str, choices: Iterable[str]) -> str:
    """A suggestion clause for a misspelt word: ``" - did you mean 'maml'?"``, or nothing."""
    found = difflib.get_close_matches(str(word), list(choices), n=1, cutoff=0.5)
    return f" - did you mean '{found[0]}'?" if found else ""


def require(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


def reason(error: OSError) -> str:
    """A failed file operation in one line: which file, and why."""
    why = (error.strerror or str(error) or type(error).__name__).lower()
    return f"{shortened(error.filename)}: {why}" if error.filename is not None else why


def shortened(text: object, most: int = 120) -> str:
    """``text`` for a message: on one line, a long one cut in the middle, what cannot be printed escaped."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
    return shown if len(shown) <= most else f"{shown[: most // 2]}...{shown[-most // 4 :]}"
