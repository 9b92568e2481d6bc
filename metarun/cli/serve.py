"""``metarun serve LEARNER``: a local web page that classifies what is dropped on it."""

from __future__ import annotations

import logging

from metarun.cli.arguments import Arguments, refuse_overrides
from metarun.errors import require
from metarun.escape import printable

log = logging.getLogger("metarun")
LIMIT = 20
"""Largest size of an upload in MB."""
PORT = 8765


def run(arguments: Arguments) -> int:
    """Run the command: print the address of the page, and serve until Ctrl-C."""
    names, usage = arguments.names, arguments.command.words
    require(bool(names), f"serve needs a LEARNER, the folder that `metarun adapt` wrote: {usage}")
    require(len(names) == 1, f"serve takes one LEARNER, not {len(names)}: {usage}")
    refuse_overrides(arguments)
    host, limit = arguments["--host"] or "127.0.0.1", arguments["--limit"] or LIMIT
    port = PORT if arguments["--port"] is None else arguments["--port"]
    # Imported here because they import torch.
    from metarun.adapted.stored import load
    from metarun.serve.answers import Answers
    from metarun.serve.server import Server

    learner = load(names[0], arguments.trust)
    if (abstain := arguments["--abstain"]) is not None:
        require(bool(learner.classes), "--abstain is for classes, and this learner predicts numbers")
        learner.abstain = abstain
    answers = Answers(learner)
    answers.warm_up()
    with Server(host, port, answers, limit * 1_000_000) as server:
        if not server.is_local:
            log.warning("--host %s: everyone who can reach this machine can send inputs to this page", host)
        print(printable(f"serving    {server.url}   Ctrl-C stops"), flush=True)
        server.serve_forever()
    return 0
