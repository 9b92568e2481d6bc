"""Where the manual lies, and how wide its pages are printed. This imports next to nothing: help should not wait."""

import os

DOCS = os.path.join(os.path.dirname(os.path.dirname(__file__)), "docs")
"""Folder of the manual."""
OVERVIEW = os.path.join(DOCS, "overview.txt")
"""The page that ``metarun help`` prints in a wide terminal. scripts/docs.py makes it by ``help.overview``."""
HELP = ("--help", "-h")
"""Options that ask for help."""
WIDEST = 100
"""Columns of a page in a wide terminal."""


def columns() -> int:
    """Return the width of help: that of the terminal, and at most :data:`WIDEST`."""
    asked = os.environ.get("COLUMNS", "")
    try:
        return min(int(asked) if asked.isdecimal() and int(asked) else os.get_terminal_size(1).columns, WIDEST)
    except OSError:  # standard output is no terminal
        return WIDEST
