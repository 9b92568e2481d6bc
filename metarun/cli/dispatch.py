"""From the words of a command line to its command, and from what it raises to an exit status.

This module imports the standard library alone, so that help and errors come at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from metarun.cli.arguments import COMMON, parse
from metarun.cli.commands import COMMANDS
from metarun.cli.pages import HELP, columns
from metarun.errors import Interrupted, RunFailed, UserError, conceal, foreign, nearest, reason, users_place
from metarun.escape import printable

_FLAGS = frozenset(name for option in COMMON for name in (option.name, option.short))
_CONFIG_DIR = ("--config-dir", "-cd")


def run(words: Sequence[str]) -> int:
    """Run one command and return its exit status: 0, 1 (failed), 2 (wrong usage), 130 or 143 (stopped by a signal)."""
    foreign.clear()
    try:
        return _dispatch(list(words))
    except UserError as error:
        return _complain(error, 2)
    except RunFailed as error:
        return _complain(error, 1)
    except Interrupted as error:
        return 128 + error.signal_number
    except KeyboardInterrupt:
        print("metarun: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        return _complain(error, 1)


def _dispatch(words: list[str]) -> int:
    if words and words[0] == "--version":
        from importlib.metadata import version

        print(f"metarun {version('metarun')}")
        return 0
    name, rest = split(words)
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'{nearest(name, COMMANDS)}   commands: {', '.join(COMMANDS)}")
    if {*HELP} & {*rest}:
        from metarun.cli.help import command_help, overview

        print(command_help(COMMANDS[name]) if {*words} - _FLAGS else overview(columns()))
        return 0
    command = COMMANDS[name]
    arguments = parse(command, rest)
    arguments.apply()
    return importlib.import_module(f"metarun.cli.{command.module or name}").run(arguments) or 0


def split(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the name of the command and its other words. Common options and ``--config-dir`` may come before it."""
    before, rest = [], list(words)
    while rest and rest[0].partition("=")[0] in (*_FLAGS, *_CONFIG_DIR):
        takes = 2 if rest[0] in _CONFIG_DIR else 1
        before += rest[:takes]
        del rest[:takes]
    return ("train", list(words)) if is_train(rest) else (rest[0], [*before, *rest[1:]])


def is_train(words: Sequence[str]) -> bool:
    """Return whether the words name no command and so belong to a training run."""
    return not words or words[0].startswith(("-", "+", "~")) or "=" in words[0]


def only_prints(words: Sequence[str]) -> bool:
    """Return whether the result of a command is its output, rather than files."""
    name, rest = split(words)
    return (name in COMMANDS and COMMANDS[name].prints) or bool({"--json", "--version", *HELP} & {*rest})


def _complain(error: BaseException, status: int) -> int:
    if os.environ.get("METARUN_DEBUG") == "1":
        raise error
    if isinstance(error, (UserError, RunFailed)):
        message = str(error)
    elif isinstance(error, OSError):  # a full disk, a file that may not be read
        message = reason(error)
    elif isinstance(error, MemoryError):
        message = "not enough memory"
    else:
        description = f"{type(error).__name__}: {error}   (METARUN_DEBUG=1 shows the traceback)"
        place = users_place(error)
        if place:
            message = f"{place} raised {description}"
        elif foreign:
            message = (
                f"{description}   this is a bug in metarun, or of {', '.join(sorted(foreign))}: `metarun check` with "
                "the same words tries what they promise"
            )
        else:
            message = f"this is a bug in metarun: {description}"
    print(printable(f"metarun: {conceal(message)}"), file=sys.stderr)
    return status
