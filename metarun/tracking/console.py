"""Progress display of a training run: one live line on a terminal, an occasional plain line elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TextIO, cast

from metarun.escape import printable
from metarun.streams import Surviving

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY = 10.0  # seconds between plain lines
DRAW_EVERY = 0.1  # seconds between updates of the live line
RATE_OVER = 30.0  # seconds over which the rate is averaged


_shown = True


def is_shown() -> bool:
    """Return whether progress is displayed."""
    return _shown


@contextmanager
def shown(display: bool) -> Iterator[None]:
    """Within the block, show progress and messages on stderr if ``display``; otherwise only the run's log receives
    them.
    """
    global _shown
    log = logging.getLogger("metarun")
    before = (_shown, log.level, log.propagate, log.handlers)
    log.handlers = [] if display else [logging.NullHandler()]
    log.setLevel(logging.INFO)
    _shown = display
    if display:
        set_up_logging()
    try:
        yield
    finally:
        _shown, level, log.propagate, log.handlers = before
        log.setLevel(level)


class Display:
    """Progress display of one training run, a context manager.

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
        self._stream = cast(TextIO, Surviving((sys.stderr if _shown else None) if stream is None else stream))
        self._total = total
        self._metric = metric
        self._direction = "best" if higher_is_better else "lowest"
        self._iteration = start
        self._loss = ""
        self._validated = ""
        self._marks = [(time.monotonic(), start)]  # (time, iteration), for the rate
        self._drawn = self._marks[0][0]
        self._live: Progress | None = None
        self._bar: TaskID | None = None

    def __enter__(self) -> Display:
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            # Messages that others print to stderr meanwhile appear above the line.
            self._live = Progress(
                TextColumn("iteration"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.description}", markup=False),
                console=Console(file=self._stream),
                transient=True,
                redirect_stdout=False,
            )
            self._bar = self._live.add_task("", total=self._total, completed=self._iteration)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def step(self, iteration: int, row: Mapping[str, float] | None) -> None:
        """Update the display after an iteration, with the row of metrics if one was just logged."""
        self._iteration = iteration
        if row is not None:
            self._loss = _loss(row)
        now = time.monotonic()
        if now - self._drawn >= (DRAW_EVERY if self._live is not None else LINE_EVERY):
            self._draw(now)

    def validation(self, iteration: int, value: float, best: float | None) -> None:
        """Show the validation metric after ``iteration``, and its best value so far (``None`` if none is finite)."""
        self._iteration = iteration
        suffix = f" ({self._direction} {best:.4g})" if best is not None else ""
        self._validated = f"val {self._metric} {value:.4g}{suffix}"
        self._draw(time.monotonic())

    def note(self, message: str) -> None:
        """Print a separate line."""
        if self._live is not None:
            self._live.console.print(printable(message), markup=False, highlight=False, soft_wrap=True)
        else:
            self._print(message)

    def _draw(self, now: float) -> None:
        self._drawn = now
        parts = [part for part in (self._loss, self._validated, *self._pace(now)) if part]
        if self._live is not None and self._bar is not None:
            self._live.update(self._bar, completed=self._iteration, description="  ".join(parts))
        else:
            self._print("  ".join([f"iteration {self._iteration}/{self._total}", *parts]))

    def _pace(self, now: float) -> tuple[str, ...]:
        """Return rate and remaining time, averaged over :data:`RATE_OVER`; empty before the first iteration is done."""
        while len(self._marks) > 1 and now - self._marks[1][0] > RATE_OVER:
            del self._marks[0]
        then, iteration = self._marks[0]
        done, seconds = self._iteration - iteration, now - then
        if now - self._marks[-1][0] > 1:
            self._marks.append((now, self._iteration))
        if done <= 0 or seconds <= 0:
            return ()
        return f"{done / seconds:.3g} it/s", f"left {clock((self._total - self._iteration) * seconds / done)}"

    def _print(self, line: str) -> None:
        print(printable(line), file=self._stream, flush=True)


def clock(seconds: float) -> str:
    """Format seconds as ``3:21``, or ``1:03:21`` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _loss(row: Mapping[str, float]) -> str:
    """Format the row's training loss, or its first training metric if it has none."""
    values = {name.removeprefix("train/"): value for name, value in row.items() if name != "iteration"}
    name = "loss" if "loss" in values else next(iter(values), None)
    return f"{name} {values[name]:.4g}" if name is not None else ""


def set_up_logging() -> None:
    """Write messages of the ``metarun`` logger to stderr, one line each."""
    log = logging.getLogger("metarun")
    log.setLevel(logging.INFO)
    log.propagate = False
    if not any(isinstance(handler, _Stderr) for handler in log.handlers):
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)


class _Stderr(logging.Handler):
    """Logging handler that looks up ``sys.stderr`` for each message, because it may have been replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        Surviving(sys.stderr).write(printable(self.format(record)) + "\n")
