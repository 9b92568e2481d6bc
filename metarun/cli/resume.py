"""``metarun resume RUN [key=value ...]``: go on where a run stopped, exactly."""

from __future__ import annotations

from metarun.cli.output import print_summary, set_up_logging
from metarun.cli.stored import rebuild
from metarun.errors import UserError


def run(words: list[str]) -> int:
    """The command."""
    set_up_logging()
    directory, experiment, _ = rebuild("resume", words, allowed=("runner.", "tracker."))
    done = directory.summary()
    if done is not None and directory.status().get("state") == "finished":
        if experiment.runner.iterations < done["iterations"]:
            raise UserError(f"the run has {done['iterations']} iterations; runner.iterations can only be raised")
        if experiment.runner.iterations == done["iterations"]:
            print_summary({**done, "directory": str(directory.path)})
            print("the run had finished; to train longer: metarun resume RUN runner.iterations=N")
            return 0
    print_summary({**experiment.run(directory), "directory": str(directory.path)})
    return 0
