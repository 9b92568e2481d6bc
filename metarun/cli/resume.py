"""``metarun resume RUN [key=value ...]``: continue a stopped run exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metarun.cli.output import print_summary
from metarun.config.check import check
from metarun.config.environment import resolved
from metarun.config.trust import take_code
from metarun.errors import UserError
from metarun.runs.history import EXECUTION_KEYS
from metarun.runs.launch import carry_out
from metarun.runs.stored import refuse_lost_data, reread
from metarun.tracking.console import set_up_logging


def run(words: list[str]) -> int:
    """Run the command."""
    set_up_logging()
    words, trust = take_code(words)
    directory, config, facts, changes = reread("resume", words, allowed=("runner.", "tracker."), trust=trust)
    refuse_lost_data("resume", str(directory.path), config, changes)
    check(config)
    runner = resolved(config)["runner"]
    iterations, minutes = runner["iterations"], runner["minutes"]
    done = directory.summary() if directory.finished() else None
    if done is not None:
        try:
            if iterations < done["iterations"]:
                raise UserError(f"the run has {done['iterations']} iterations; runner.iterations can only be raised")
            # Rounded like the seconds in the summary, so that a used-up time budget is recognised.
            used_up = minutes is not None and round(60 * minutes, 1) <= done["wall_s"]
            out_of_time = done.get("ended_by") == "runner.minutes" and used_up
            if iterations == done["iterations"] or out_of_time:
                _refuse_what_changes_nothing(changes)
                longer = "runner.minutes=N" if out_of_time else "runner.iterations=N"
                status = print_summary({**done, "directory": str(directory.path)})
                print(f"the run had finished; to train longer: metarun resume RUN {longer}")
                return status
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            raise UserError(
                f"{directory.path / 'summary.json'} is damaged: it lacks values that a run writes"
            ) from None
    summary = carry_out(config, {**facts, "changes": changes}, directory)
    return print_summary(summary) if summary else 0


def _refuse_what_changes_nothing(changes: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` for keys such as runner.test_episodes, which have no effect on a finished run."""
    limits = ("runner.iterations", "runner.minutes")
    unused = [key for key in changes if key not in limits and not key.startswith(EXECUTION_KEYS)]
    if unused:
        keys = " ".join(f"{key}={changes[key]}" for key in unused)
        raise UserError(f"the run has finished: {keys} has no effect   to evaluate: metarun eval RUN {keys}")
