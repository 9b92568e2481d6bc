"""``metarun eval RUN [key=value ...]``: judge a run's learner again, under another protocol if asked."""

from __future__ import annotations

import json
from datetime import datetime

from metarun.cli.output import print_summary, set_up_logging
from metarun.cli.stored import rebuild, take_code, trained
from metarun.errors import UserError, require
from metarun.tracking.rundir import atomic_write
from metarun.types import Split


def run(words: list[str]) -> int:
    """The command. The result is also written to ``evaluations/<time>.json`` in the run directory."""
    set_up_logging()
    words, trust = take_code(words)
    split: Split = "val" if "--val" in words else "test"
    words = [word for word in words if word != "--val"]
    for word in words:
        if word.startswith("-"):
            raise UserError(f"unknown option '{word}'   eval knows --val (judge on the validation split)")
    allowed = ("task.", "algorithm.", "runner.")
    directory, experiment, changes = rebuild("eval", words, allowed, trust)
    require(experiment.runner.test_episodes > 0 or split == "val", "runner.test_episodes=0: nothing to judge on")
    chosen, iteration = trained(directory, experiment)
    results = experiment.test(split)
    summary = {
        "iterations": iteration,
        "checkpoint": chosen.name,
        "split": split,
        "changes": changes,
        **experiment.findings(split, results),
    }
    folder = directory.path / "evaluations"
    folder.mkdir(exist_ok=True)
    path = folder / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}.json"
    atomic_write(path, json.dumps(summary, indent=1).encode())
    print_summary({**summary, "directory": str(path)})
    return 0
