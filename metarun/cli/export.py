"""``metarun export SOURCE --to FORMAT``: write a learner or an optimizer for use without metarun."""

from __future__ import annotations

import importlib

from metarun.cli.arguments import Arguments, refuse_overrides
from metarun.errors import require
from metarun.escape import printable
from metarun.export import FORMATS, Request

QUERIES = 100


def run(arguments: Arguments) -> int:
    """Run the command: write the files of the format and print what was written and how it was checked."""
    usage, names, to = arguments.command.words, arguments.names, arguments["--to"]
    require(to is not None, f"--to is missing: one of {', '.join(FORMATS)}   usage: {usage}")
    chosen = FORMATS[to]
    require(bool(names), f"export --to {to} needs a {chosen.source}: {usage}")
    require(len(names) == 1, f"export takes one {chosen.source}, not {len(names)}: {usage}")
    require(
        arguments["--queries"] is None or chosen.source == "LEARNER",
        f"--queries is for learners; --to {to} takes a {chosen.source}",
    )
    refuse_overrides(arguments)
    request = Request(names[0], arguments["--out"], arguments["--queries"] or QUERIES, arguments.trust)
    for line in importlib.import_module(f"metarun.export.{chosen.module}").export(request):
        print(printable(line), flush=True)
    return 0
