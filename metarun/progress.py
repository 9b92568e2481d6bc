"""Progress on stderr: one live line on a terminal, an occasional plain line elsewhere.

Displays may be nested, as the testing of a trial of a search. The live line then has the position in the outer ones,
followed by the innermost. What does not fit into the terminal is left out, the least important part first.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, TextIO, TypeVar, cast

from metarun.escape import printable
from metarun.streams import Surviving

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

T = TypeVar("T")

LINE_EVERY = 10.0
"""Seconds between plain lines."""
DRAW_EVERY = 0.1
"""Seconds between updates of the live line."""
LIVE_AFTER = 0.5
"""Seconds after which a task gets a live line, so that short ones do not flicker."""
RATE_OVER = 30.0
"""Seconds over which the rate is averaged."""
BAR = 20
"""Columns of the bar."""

_visible = True


def is_visible() -> bool:
    """Return whether progress is displayed."""
    return _visible


def set_visible(visible: bool) -> None:
    """Display progress from now on, or do not."""
    global _visible
    _visible = visible


@dataclass(frozen=True)
class Part:
    """A part of the live line. Parts with a higher ``rank`` are left out first; 0 is never left out."""

    text: str
    rank: int


def fitting(parts: Sequence[Part], width: int) -> list[Part]:
    """Return the parts that fit into ``width`` columns with two spaces between them, in their order."""
    kept: list[Part] = []
    free = width + 2
    for part in sorted(parts, key=lambda part: part.rank):
        if part.text and (len(part.text) + 2 <= free or part.rank == 0):
            kept.append(part)
            free -= len(part.text) + 2
    return [part for part in parts if any(part is each for each in kept)]


def bar(share: float, ascii_only: bool = False) -> str:
    """Return a bar for a share between 0 and 1."""
    full, empty = "#." if ascii_only else "━─"
    done = round(BAR * min(max(share, 0.0), 1.0))
    return full * done + empty * (BAR - done)


def clock(seconds: float) -> str:
    """Format seconds as ``3:21``, or ``1:03:21`` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Pace:
    """Rate of progress over the last seconds.

    Args:
        done: Count at the start.
        over: Seconds over which the rate is averaged.
    """

    def __init__(self, done: float = 0, over: float = RATE_OVER) -> None:
        self._over = over
        self._marks = [(time.monotonic(), done)]

    def rate(self, now: float, done: float) -> float | None:
        """Return the count per second; ``None`` before anything is done."""
        while len(self._marks) > 1 and now - self._marks[1][0] > self._over:
            del self._marks[0]
        then, before = self._marks[0]
        if now - self._marks[-1][0] > 1 and self._over < inf:
            self._marks.append((now, done))
        return (done - before) / (now - then) if done > before and now > then else None

    def skip(self, seconds: float) -> None:
        """Leave out the last seconds, in which something else was done."""
        self._marks = [(then + seconds, done) for then, done in self._marks]


class Line:
    """The live line of a terminal. All displays of a process share it.

    Attributes:
        shown: The displays, outermost first.
    """

    def __init__(self) -> None:
        self.shown: list[Display] = []
        self._live: Live | None = None

    def add(self, display: Display, stream: TextIO) -> None:
        """Show a display inside those already shown."""
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            # Messages that others print to stderr meanwhile appear above the line.
            console = Console(file=stream)
            self._live = Live(self, console=console, transient=True, redirect_stdout=False, auto_refresh=False)
            self._live.start()
        self.shown.append(display)

    def remove(self, display: Display) -> None:
        """Show a display no longer; the line disappears with the last one."""
        if display in self.shown:
            self.shown.remove(display)
        if self._live is not None and not self.shown:
            self._live.stop()
            self._live = None

    def refresh(self) -> None:
        """Draw the line again."""
        if self._live is not None:
            self._live.refresh()

    def note(self, message: str) -> None:
        """Print a message above the line."""
        if self._live is not None:
            self._live.console.print(printable(message), markup=False, highlight=False, soft_wrap=True)

    def parts(self) -> list[Part]:
        """Return the parts of all displays, without the details of the outer ones."""
        outer = [replace(part, rank=min(part.rank, 2)) for each in self.shown[:-1] for part in each.parts()[:2]]
        return [*outer, *(self.shown[-1].parts() if self.shown else ())]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        width = options.max_width
        parts = list(self.parts())
        if self.shown and (share := self.shown[-1].share()) is not None:
            parts.append(Part(bar(share, options.ascii_only), 9))
        yield Text("  ".join(part.text for part in fitting(parts, width)), no_wrap=True, overflow="ellipsis", end="")


LINE = Line()


class Display:
    """A display of progress, a context manager.

    Subclasses say what it shows in :meth:`parts`: first the position, then the time left.

    Args:
        stream: Output stream; ``None``: stderr, unless progress is not displayed.
        live_after: Seconds after which a live line appears.
    """

    def __init__(self, stream: TextIO | None = None, live_after: float = 0.0) -> None:
        self._stream = cast(TextIO, Surviving((sys.stderr if _visible else None) if stream is None else stream))
        self._terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._start = self._drawn = time.monotonic()
        self._live_after = live_after
        self._live = False

    def parts(self) -> Sequence[Part]:
        """Return the parts of the line."""
        raise NotImplementedError

    def share(self) -> float | None:
        """Return the share that is done, for the bar; ``None`` if the total is unknown."""
        return None

    def __enter__(self) -> Display:
        if self._terminal and not self._live_after:
            self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            LINE.remove(self)
            self._live = False

    def draw(self, force: bool = False) -> None:
        """Draw the line, unless it was drawn a moment ago."""
        now = time.monotonic()
        if not force and now - self._drawn < (DRAW_EVERY if self._terminal else LINE_EVERY):
            return
        if self._terminal and not self._live and now - self._start >= self._live_after:
            self._begin()
        self._drawn = now
        if self._live:
            LINE.refresh()
        elif not self._terminal:
            self.print("  ".join(part.text for part in self.parts() if part.text))

    def note(self, message: str) -> None:
        """Print a separate line."""
        if self._live:
            LINE.note(message)
        else:
            self.print(message)

    def print(self, line: str) -> None:
        """Print a plain line."""
        print(printable(line), file=self._stream, flush=True)

    def _begin(self) -> None:
        LINE.add(self, self._stream)
        self._live = True


class Progress(Display):
    """Progress of a task that is counted, with the time left.

    It also has the few methods of tqdm that pooch calls.

    Args:
        label: What is done, such as ``testing``.
        total: Total count; 0 if unknown.
        unit: Unit of the displayed counts.
        scale: Divisor of the displayed counts (bytes to MB).
        done: Count at the start.
        summary: Print the count at the end, for what happens once (a download).
        outer: Other displays are shown inside this one. Its line appears at once, and its rate is that of the whole
            time, since each item takes long.
        stream: As in :class:`Display`.
    """

    def __init__(
        self, label: str, total: float = 0, unit: str = "", *, scale: float = 1, done: float = 0,
        summary: bool = False, outer: bool = False, stream: TextIO | None = None,
    ) -> None:  # fmt: skip
        super().__init__(stream, live_after=0 if outer else LIVE_AFTER)
        self.label, self.total, self.unit, self.scale, self.done = label, total, unit, scale, done
        self._summary = summary
        self._pace = Pace(done, inf if outer else RATE_OVER)

    def __enter__(self) -> Progress:
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._summary and self.done:
            self.print(self._position())

    def update(self, count: float = 1) -> None:
        """Count further and draw the line."""
        self.done += count
        self.draw()

    def reset(self) -> None:
        """Reset the count. pooch does so before its last update, which then holds the total."""
        self.done = 0

    def close(self) -> None:
        """Do nothing. pooch calls this; leaving the ``with`` block ends the line."""

    def share(self) -> float | None:
        return self.done / self.total if self.total else None

    def parts(self) -> list[Part]:
        rate = self._pace.rate(time.monotonic(), self.done)
        left = f"left {clock((self.total - self.done) / rate)}" if rate and self.total else ""
        return [Part(self._position(), 0), Part(left, 1)]

    def _position(self) -> str:
        digits = 0 if self.scale == 1 else 1
        done = f"{self.done / self.scale:.{digits}f}"
        total = f"/{self.total / self.scale:.{digits}f}" if self.total else ""
        return f"{self.label} {done}{total} {self.unit}".rstrip()


def track(items: Iterable[T], label: str, total: int, unit: str = "") -> Iterator[T]:
    """Yield the items and display how many of them are done."""
    with Progress(label, total, unit) as progress:
        for item in items:
            yield item
            progress.update()
