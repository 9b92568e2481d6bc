"""``metarun check task=... model=... algorithm=...``: try what the components of a run promise each other."""

from __future__ import annotations

from metarun.cli.arguments import Arguments
from metarun.cli.output import print_json
from metarun.escape import printable

_SMALL = ("runner.device=cpu", "runner.precision=float32", "tracker.wandb=disabled")


def run(arguments: Arguments) -> int:
    """Run the command; return exit status 1 if something does not hold."""
    from metarun.config.build import build
    from metarun.config.compose import compose
    from metarun.tracking.console import shown
    from metarun.training.checks import examine
    from metarun.training.experiment import Experiment

    words = [*_SMALL, *arguments.overrides]
    if not any(word.startswith("runner.meta_batch=") for word in words):
        words.append("runner.meta_batch=2")

    composed = compose(words)
    facts = composed.facts

    def make() -> Experiment:
        return build(composed.config, facts)

    findings = []
    with shown("quiet"):
        for component, what, why in examine(make):
            findings.append({"component": component, "what": what, "ok": why is None, "why": why})
            if not arguments["--json"]:
                print(printable(f"{'ok  ' if why is None else 'BAD '} {component:<10} {what}"), flush=True)
                if why is not None:
                    print(printable(f"     {why}"), flush=True)
    broken = sum(not finding["ok"] for finding in findings)
    if arguments["--json"]:
        print_json({"ok": not broken, "findings": findings})
    return 1 if broken else 0
