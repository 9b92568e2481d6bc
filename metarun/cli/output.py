"""Output of the commands: results as a table on stdout, everything else as plain lines on stderr."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

from metarun import strict_json
from metarun.escape import printable

if TYPE_CHECKING:
    from rich.console import Console

from metarun.tracking.rundir import not_finite

MOST_POINTS = 24
"""Largest number of printed points of an adaptation curve; summary.json has all."""


def number(value: float) -> str:
    """Format a number with four significant digits, or two decimals if it is 100 or more."""
    return f"{value:.2f}" if abs(value) >= 100 else f"{value:.4g}"


def half_width(estimate: Mapping[str, Any]) -> str:
    """Format half the width of an interval, which is not known of a single task, nor of tasks that are one group."""
    return number(estimate["ci95"]) if isfinite(estimate["ci95"]) else "unknown"


def print_summary(summary: Mapping[str, Any]) -> int:
    """Print the test table, the adaptation curve, the protocol and the run directory; return the exit status.

    The status is 1 if a result is not finite, and the last line on stderr says so.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = plain_console()
    tested = max((estimate["n"] for estimate in summary["test"].values()), default=0)
    held_out = "held-out " if summary["protocol"].get("held_out_tasks", True) else ""
    title = f"meta-test, {tested} {held_out}tasks" if tested else "not tested (runner.test_episodes=0)"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("mean", justify="right")
    table.add_column("± 95 % CI", justify="right")
    for name, estimate in summary["test"].items():
        table.add_row(printable(name), number(estimate["mean"]), half_width(estimate))
    for name, value in summary.get("references", {}).items():
        table.add_row(Text(printable(f"{name} (reference)"), style="dim"), number(value), "")
    console.print(table)
    for name, of in summary.get("robust", {}).items():
        interval = f"[{number(of['low'])}, {number(of['high'])}]"
        console.print(printable(f"{name}, interquartile mean   {number(of['iqm'])} {interval}"))
    for name, rows in summary.get("calibration", {}).items():
        for row in rows:
            measured = ", ".join(
                f"{measure} {number(row[key]['mean'])} ± {half_width(row[key])}"
                for key, measure in (("ece", "expected error"), ("nll", "log-loss"), ("brier", "Brier score"))
            )
            at = "" if row["temperature"] == 1 else f" at the fitted temperature {number(row['temperature'])}"
            console.print(printable(f"calibration{name}{at}   {measured}"))
    points = summary["adaptation"]
    if 1 < len(points) <= MOST_POINTS:
        at, words = (
            ("episode", "in episodes of a trial") if "episode" in points[0] else ("step", "after adaptation steps")
        )
        console.print(f"{words}   " + ", ".join(f"{p[at]}: {number(p['mean'])}" for p in points))
    console.print(printable("protocol   " + ", ".join(f"{k}={_short(v)}" for k, v in summary["protocol"].items())))
    if summary.get("ended_by"):
        console.print(printable(f"ended by   {summary['ended_by']}, after {summary['iterations']} iterations"))
    if "directory" in summary:
        console.print(printable(f"results    {summary['directory']}"))
    if bad := not_finite(summary):
        sys.stdout.flush()
        print(printable(f"metarun: {bad}"), file=sys.stderr)
    return 1 if bad else 0


def print_json(value: Any) -> None:
    """Print a value as standard JSON; numbers that are not finite become null."""
    print(strict_json.dumps(value, indent=1))


def plain_console() -> Console:
    """Return a rich console on stdout that prints text as it is: no markup, no emoji codes, no wrapping."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "/".join(f"{v}" for v in value.values())
    return number(value) if isinstance(value, float) else str(value)
