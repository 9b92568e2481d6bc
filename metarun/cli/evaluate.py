"""``metarun eval RUN [key=value ...]``: evaluate a run's learner again, also under another protocol."""

from __future__ import annotations

from metarun.cli.output import print_summary
from metarun.config.trust import take_code
from metarun.errors import UserError, nearest
from metarun.runs.evaluate import evaluate_run
from metarun.tracking.console import set_up_logging
from metarun.types import Split

OPTIONS = {
    "--val": "evaluate on the validation split",
    "--new-classes": "evaluate on the classes of the data that the run does not know",
    "--allow-seen-classes": "evaluate also on classes that the run meta-trained on",
}


def run(words: list[str]) -> int:
    """Run the command. The result is also written to ``evaluations/<time>.json`` in the run directory."""
    set_up_logging()
    words, trust = take_code(words)
    flags = {word for word in words if word.startswith("-")}
    words = [word for word in words if word not in flags]
    for flag in flags - OPTIONS.keys():
        known = "   ".join(f"{name} ({what})" for name, what in OPTIONS.items())
        raise UserError(f"unknown option '{flag}'{nearest(flag, OPTIONS)}   eval knows {known}")
    split: Split = "val" if "--val" in flags else "test"
    summary = evaluate_run(
        words,
        trust,
        split=split,
        new_classes="--new-classes" in flags,
        allow_seen_classes="--allow-seen-classes" in flags,
    )
    status = print_summary(summary)
    if seen := summary["data"].get("seen_classes"):
        from metarun.tasks.same_data import named

        print(f"NOT HELD OUT   meta-trained on too: {named(seen)} (--allow-seen-classes)")
    return status
