"""``metarun resume RUN [key=value ...]``: continue a stopped run exactly."""

from __future__ import annotations

from metarun.cli.arguments import Arguments
from metarun.cli.output import print_summary
from metarun.errors import UserError
from metarun.runs.resume import resume_run


def run(arguments: Arguments) -> int:
    """Run the command."""
    resumed = resume_run([*arguments.names, *arguments.overrides], arguments.trust)
    if not resumed.summary:
        return 0
    try:
        status = print_summary(resumed.summary)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        if not resumed.longer:
            raise
        raise UserError(
            f"{resumed.summary['directory']}/summary.json is damaged: it lacks values that a run writes"
        ) from None
    if resumed.longer:
        if resumed.completed:
            print(f"completed from metrics.jsonl: {', '.join(resumed.completed)}")
        print(f"the run had finished; to train longer: metarun resume RUN {resumed.longer}=N")
    return status
