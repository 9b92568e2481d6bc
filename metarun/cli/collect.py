"""``metarun collect key=value ... --tasks N --out DIR``: store the learning histories of single-task learners."""

from __future__ import annotations

from pathlib import Path

from metarun.cli.arguments import Arguments
from metarun.config.compose import compose
from metarun.errors import require
from metarun.escape import printable


def run(arguments: Arguments) -> int:
    """Run the command."""
    out = arguments["--out"]
    require(out is not None, f"--out is missing: the folder of the histories   usage: {arguments.command.words}")
    composed = compose(arguments.overrides)
    from metarun.runs.collect import collect_histories  # imports torch

    for line in collect_histories(composed, arguments["--tasks"] or TASKS, Path(out).expanduser()):
        print(printable(line))
    return 0


TASKS = 100
"""Number of tasks, if none is given."""
