"""``metarun predict LEARNER --query PATH``: predict new inputs by a learner that ``metarun adapt`` saved."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from metarun.cli.arguments import Arguments, refuse_overrides
from metarun.errors import RunFailed, require
from metarun.escape import printable

log = logging.getLogger("metarun")


def run(arguments: Arguments) -> int:
    """Run the command: write a CSV file with a row for each input, and print how many were predicted."""
    names, query, usage = arguments.names, arguments["--query"], arguments.command.words
    require(bool(names), f"predict needs a LEARNER, the folder that `metarun adapt` wrote: {usage}")
    require(len(names) == 1, f"predict takes one LEARNER, not {len(names)}: {usage}")
    require(query is not None, f"--query is missing: the inputs to predict   usage: {usage}")
    refuse_overrides(arguments)
    # Imported here because they import torch.
    from metarun.adapted.predictions import depend_on_each_other
    from metarun.adapted.sources import refuse_missing
    from metarun.adapted.stored import load, located
    from metarun.adapted.streamed import CHUNK, predict_to_file

    path = Path(query).expanduser()
    refuse_missing("--query", path)
    learner = load(names[0], arguments.trust)
    if (abstain := arguments["--abstain"]) is not None:
        require(bool(learner.classes), "--abstain is for classes, and this learner predicts numbers")
        learner.abstain = abstain
    if depend_on_each_other(learner.algorithm):
        log.warning(
            "a transductive learner: predictions depend on which queries are predicted together, %d here", CHUNK
        )
    beside = located(names[0]).parent / f"predicted_{datetime.now():%Y-%m-%d_%H-%M-%S}.csv"
    file = Path(arguments["--out"]).expanduser() if arguments["--out"] else beside
    outcome = predict_to_file(learner, path, file)
    print(f"predicted  {outcome.predicted:,} inputs")
    if learner.abstain is not None:
        print(f"no class   {outcome.abstained:,} of them, whose probability is below {learner.abstain:g}")
    print(printable(f"results    {file}"))
    if outcome.unread:
        more = "; ..." if outcome.unread > len(outcome.reasons) else ""
        raise RunFailed(
            f"{outcome.unread:,} images cannot be read and have empty rows: {'; '.join(outcome.reasons)}{more}"
        )
    return 0
