"""Options that several commands have, and a reader of their values. Importing this takes no time."""

from __future__ import annotations

from collections.abc import Callable

from metarun.cli.arguments import Option


def some(what: str) -> Callable[[str], str]:
    """Return a reader of any text but the empty one."""

    def read(text: str) -> str:
        if not text:
            raise ValueError(what)
        return text

    return read


JSON = Option("--json", "print JSON on standard output, and nothing else there")
CONFIG_DIR = Option(
    "--config-dir", "your own configuration files; they add options and shadow metarun's", "DIR",
    "$METARUN_CONF", short="-cd", read=some("a directory"),
)  # fmt: skip
TRUST = Option(
    "--trust", "let the stored configuration call your own code: all of it, or that of these modules", "MODULE,...",
    "metarun's own code", implied="", repeats=True,
)  # fmt: skip
