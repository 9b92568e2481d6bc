"""Copies of finished runs at their trackers, recreated from the run directory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from metarun.config.environment import resolved
from metarun.runs.stored import tested_checkpoint
from metarun.tracking import sinks
from metarun.tracking.files import logging_to
from metarun.tracking.rundir import RunDirectory
from metarun.tracking.settings import Tracker

log = logging.getLogger("metarun")


def complete_copies(
    directory: RunDirectory, config: Mapping[str, Any], facts: Mapping[str, Any], changes: Mapping[str, Any]
) -> list[str]:
    """Recreate the copies that a finished run lacks, such as a deleted event file or offline run.

    Args:
        directory: The run.
        config: Its configuration, with the requested changes.
        facts: Its choices and its group.
        changes: The requested changes. Keys of the tracker are stored, and every copy is then completed.

    Returns:
        The trackers whose copies were completed.
    """
    values, summary = resolved(config), directory.summary() or {}
    tracker = Tracker(**values["tracker"])
    sinks.require_packages(tracker)
    run = sinks.TrackedRun(
        directory.path.resolve(),
        f"{values['name']}-s{values['seed']}",
        config,
        facts.get("choices") or {},
        summary.get("protocol", {}),
        facts.get("group"),
    )
    asked = {key: value for key, value in changes.items() if key.startswith("tracker.")}
    wanted = tracker.sinks if asked else sinks.missing(run, tracker)
    if not wanted:
        return []
    with directory.locked(), logging_to(directory.path / "metarun.log"):
        directory.change(asked, after=summary["iterations"])
        sink = sinks.start(run, replace(tracker, sinks=wanted))
        try:
            sink.result(summary, tested_checkpoint(directory, values["runner"]["select"]))
            for path in sorted(directory.plots.glob("*.[pg][ni][gf]")):
                sink.image(path.stem, path)
        finally:
            sink.finish(0)
    return list(wanted)
