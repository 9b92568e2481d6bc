"""The command line, one module for each command.

``output`` prints results; what a command does to runs stands in ``metarun.runs``. This module imports next to nothing:
``metarun --help`` prints a page that ``scripts/docs.py`` has made, and waits for no more than that.
"""

from __future__ import annotations

import os
import sys

from metarun import streams
from metarun.cli.pages import HELP, OVERVIEW, WIDEST, columns

TYPE_CHECKING = False  # the constant of typing, which takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 (failed), 2 (wrong usage), 130 or 143 (stopped by a signal)."""
    from metarun.cli import dispatch

    return dispatch.run(sys.argv[1:] if arguments is None else arguments)


def console() -> None:
    """Entry point of the ``metarun`` script. A closed stdout does not stop a run, but fails a command that only
    prints.
    """
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # processes it starts do not import from the current directory either
    streams.survive()
    words = sys.argv[1:]
    if len(words) == 1 and words[0] in (*HELP, "help") and columns() == WIDEST:
        with open(OVERVIEW, encoding="utf-8") as page:
            print(page.read(), end="")
        status = 0
    else:
        from metarun.cli import lifeline

        lifeline.watch()
        status = main(words)
    if reason := streams.lost():
        from metarun.cli.dispatch import only_prints

        print(f"metarun: cannot write to standard output: {reason}", file=sys.stderr)
        if status == 0 and only_prints(words):
            status = 1
    sys.exit(status)
