"""``metarun resume RUN [key=value ...]``: go on where a run stopped, exactly."""

from __future__ import annotations

from metarun.cli.launch import carry_out
from metarun.cli.output import print_summary, set_up_logging
from metarun.cli.stored import refuse_lost_data, reread, take_code
from metarun.config.check import check
from metarun.config.environment import resolved
from metarun.errors import UserError


def run(words: list[str]) -> int:
    """The command."""
    set_up_logging()
    words, trust = take_code(words)
    directory, config, facts, changes = reread("resume", words, allowed=("runner.", "tracker."), trust=trust)
    refuse_lost_data("resume", str(directory.path), config, changes)
    check(config)
    iterations = resolved(config)["runner"]["iterations"]
    done = directory.summary()
    if done is not None and directory.status().get("state") == "finished":
        try:
            if iterations < done["iterations"]:
                raise UserError(f"the run has {done['iterations']} iterations; runner.iterations can only be raised")
            if iterations == done["iterations"]:
                print_summary({**done, "directory": str(directory.path)})
                print("the run had finished; to train longer: metarun resume RUN runner.iterations=N")
                return 0
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            raise UserError(f"{directory.path / 'summary.json'} is damaged: not what a run writes") from None
    summary = carry_out(config, facts, directory)
    if summary:
        print_summary(summary)
    return 0
