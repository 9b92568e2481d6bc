"""Trackers: copies of a run's metrics.jsonl elsewhere. The key tracker.sinks names modules of this package.

Such a module has two functions. ``start(run, tracker)`` starts or continues a run's copy and returns its :class:`Sink`.
``missing(run, tracker)`` tells whether there is no copy. A copy is complete whenever its sink starts: it is made anew
from metrics.jsonl, or brought up to it. A module bears the name of the package that it needs.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from metarun.errors import require
from metarun.tracking.settings import Tracker

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TrackedRun:
    """The facts about a run that its trackers show.

    Attributes:
        directory: The run directory, absolute.
        name: Name of the run, with its seed.
        config: The configuration.
        choices: The chosen option of each group; empty if unknown.
        protocol: The evaluation protocol.
        group: The sweep of the run, if any.
    """

    directory: Path
    name: str
    config: Mapping[str, Any]
    choices: Mapping[str, str]
    protocol: Mapping[str, Any]
    group: str | None = None


class Sink(Protocol):
    """The copy of one run at one tracker. No method raises: a tracker that fails is turned off, with a warning."""

    def log(self, row: Row) -> None:
        """Send a row; called for every line of metrics.jsonl, in order, after it is written."""

    def image(self, name: str, path: Path) -> None:
        """Send an image (PNG) or a film (GIF) after the rows of its iteration. The file stays until :meth:`finish`."""

    def result(self, summary: Mapping[str, Any], checkpoint: Path) -> None:
        """Send the summary of a tested run, whose summary.json and test.npz are written, and maybe its checkpoint."""

    def finish(self, exit_code: int) -> None:
        """Complete the copy. Later calls do nothing."""


class Sinks:
    """The copies of one run at all of its trackers, as one sink."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = sinks

    def log(self, row: Row) -> None:
        for sink in self.sinks:
            sink.log(row)

    def image(self, name: str, path: Path) -> None:
        for sink in self.sinks:
            sink.image(name, path)

    def result(self, summary: Mapping[str, Any], checkpoint: Path) -> None:
        for sink in self.sinks:
            sink.result(summary, checkpoint)

    def finish(self, exit_code: int) -> None:
        for sink in self.sinks:
            sink.finish(exit_code)


def start(run: TrackedRun, tracker: Tracker) -> Sink:
    """Start or continue the copies of a run at all of its trackers."""
    return Sinks([_module(name).start(run, tracker) for name in dict.fromkeys(tracker.sinks)])


def missing(run: TrackedRun, tracker: Tracker) -> Sequence[Any]:
    """Return the trackers that have no copy of the run."""
    return [name for name in dict.fromkeys(tracker.sinks) if _module(name).missing(run, tracker)]


def require_packages(tracker: Tracker) -> None:
    """Raise :class:`~metarun.errors.UserError` if the package of a tracker is not installed."""
    for name in tracker.sinks:
        require(
            importlib.util.find_spec(name) is not None,
            f"tracker.sinks: {name} is not installed: pip install 'metarun[{name}]'",
        )


def _module(name: str) -> Any:
    return importlib.import_module(f"metarun.tracking.sinks.{name}")
