"""``metarun eval RUN [key=value ...]``: evaluate a run's learner again, also under another protocol."""

from __future__ import annotations

from metarun.cli.arguments import Arguments
from metarun.cli.output import print_json, print_summary
from metarun.runs.evaluate import evaluate_run
from metarun.tracking.rundir import not_finite


def run(arguments: Arguments) -> int:
    """Run the command. The result is also written to ``evaluations/<time>.json`` in the run directory."""
    summary = evaluate_run(
        [*arguments.names, *arguments.overrides],
        arguments.trust,
        split="val" if arguments["--val"] else "test",
        new_classes=bool(arguments["--new-classes"]),
        allow_seen_classes=bool(arguments["--allow-seen-classes"]),
    )
    if arguments["--json"]:
        print_json(summary)
        return 1 if not_finite(summary) else 0
    status = print_summary(summary)
    if seen := summary["data"].get("seen_classes"):
        from metarun.tasks.same_data import named

        print(f"NOT HELD OUT   meta-trained on too: {named(seen)} (--allow-seen-classes)")
    return status
