"""Messages and progress of a run on stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TextIO

from metarun import progress
from metarun.escape import printable
from metarun.progress import Pace, Part, clock
from metarun.streams import Surviving

Verbosity = Literal["silent", "quiet", "normal", "verbose"]
"""``silent``: nothing on stderr; the run's log has all. ``quiet``: warnings. ``normal``: also messages and progress.
``verbose``: also details.
"""
_LEVELS = {"quiet": logging.WARNING, "normal": logging.INFO, "verbose": logging.DEBUG}
_verbosity: Verbosity = "normal"


def verbosity() -> Verbosity:
    """Return how much is written to stderr."""
    return _verbosity


@contextmanager
def shown(wanted: bool | Verbosity) -> Iterator[None]:
    """Within the block, write so much to stderr; ``True`` and ``False`` are ``normal`` and ``silent``."""
    level = ("normal" if wanted else "silent") if isinstance(wanted, bool) else wanted
    log = logging.getLogger("metarun")
    before = (_verbosity, log.level, log.propagate, log.handlers)
    log.handlers = []
    set_up_logging(level)
    try:
        yield
    finally:
        kept, log.level, log.propagate, log.handlers = before
        _set(kept)


class Display(progress.Display):
    """Progress display of one training run.

    Args:
        total: Number of iterations.
        start: Iterations already done.
        metric: Name of the metric that :meth:`validation` reports.
        higher_is_better: True if larger values of the metric are better.
        stream: Output stream; ``None``: stderr.
    """

    def __init__(
        self, total: int, start: int, metric: str, higher_is_better: bool, stream: TextIO | None = None
    ) -> None:
        super().__init__(stream)
        self._total = total
        self._metric = metric
        self._direction = "best" if higher_is_better else "lowest"
        self._iteration = self._start_at = start
        self._loss = self._validated = self._best = ""
        self._pace = Pace(start)
        self._stepped = time.monotonic()
        self._validating = 0.0

    def __enter__(self) -> Display:
        super().__enter__()
        return self

    def step(self, iteration: int, row: Mapping[str, float] | None) -> None:
        """Update the display after an iteration, with the row of metrics if one was just logged."""
        if iteration == self._start_at + 1:  # the first iteration also compiles and fills caches
            self._pace = Pace(iteration)
        self._iteration, self._stepped = iteration, time.monotonic()
        if row is not None:
            self._loss = _loss(row)
        self.draw()

    def validation(self, iteration: int, value: float, best: float | None) -> None:
        """Show the validation metric after ``iteration``, and its best value so far (``None`` if none is finite)."""
        self._iteration = iteration
        seconds = time.monotonic() - self._stepped
        self._pace.skip(seconds)
        self._validating += seconds
        self._validated = f"val {self._metric} {value:.4g}"
        self._best = f"{self._direction} {best:.4g}" if best is not None else ""
        self.draw(force=True)

    def share(self) -> float | None:
        return self._iteration / self._total if self._total else None

    def parts(self) -> list[Part]:
        """Return the parts of the line, with rate and remaining time once an iteration is done.

        The rate is that of iterations alone. Validations to come are taken to need their present share of the time.
        """
        rate = self._pace.rate(time.monotonic(), self._iteration)
        done, remaining = self._iteration - self._start_at, self._total - self._iteration
        seconds = remaining * (1 / rate + self._validating / done) if rate else 0.0
        return [
            Part(f"iteration {self._iteration}/{self._total}", 0),
            Part(f"left {clock(seconds)}" if rate else "", 1),
            Part(self._loss, 3),
            Part(self._validated, 4),
            Part(self._best, 5),
            Part(f"{rate:.3g} it/s" if rate else "", 6),
        ]


def _loss(row: Mapping[str, float]) -> str:
    """Format the row's training loss, or its first training metric if it has none."""
    values = {name.removeprefix("train/"): value for name, value in row.items() if name != "iteration"}
    name = "loss" if "loss" in values else next(iter(values), None)
    return f"{name} {values[name]:.4g}" if name is not None else ""


def set_up_logging(wanted: Verbosity | None = None) -> None:
    """Write messages of the ``metarun`` logger to stderr, one line each.

    Args:
        wanted: How much is written from now on; ``None``: as much as before.
    """
    level = _verbosity if wanted is None else wanted
    _set(level)
    log = logging.getLogger("metarun")
    log.setLevel(logging.DEBUG if level == "verbose" else logging.INFO)
    log.propagate = False
    log.handlers = [handler for handler in log.handlers if not isinstance(handler, _Stderr)]
    if level == "silent":
        log.addHandler(logging.NullHandler())
        return
    handler = _Stderr(_LEVELS[level])
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)


def _set(level: Verbosity) -> None:
    global _verbosity
    _verbosity = level
    progress.set_visible(level in ("normal", "verbose"))


class _Stderr(logging.Handler):
    """Logging handler that looks up ``sys.stderr`` for each message, because it may have been replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        Surviving(sys.stderr).write(printable(self.format(record)) + "\n")
