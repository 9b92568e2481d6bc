"""The display on a real pseudo-terminal, and plain lines elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import sys
from collections.abc import Callable

import pytest

from metarun import progress
from metarun.progress import Progress, clock, track
from metarun.tracking import console
from metarun.tracking.console import Display, set_up_logging


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock, for the test to set."""
    moment = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: moment[0])
    return moment


def everything(master: int) -> str:
    """What was written to the closed other end; Linux reports its end as an error."""
    chunks = []
    with contextlib.suppress(OSError):
        while chunk := os.read(master, 1 << 16):
            chunks.append(chunk)
    os.close(master)
    return b"".join(chunks).decode()


def test_the_first_iteration_does_not_count_for_the_time_left(now: list[float]) -> None:
    """It may compile for half a minute."""
    stream = io.StringIO()
    with Display(70_000, 100, "mse", False, stream=stream) as display:
        for iteration, seconds in ((101, 32.0), (2_101, 20.0)):
            now[0] += seconds
            display.step(iteration, None)
    assert stream.getvalue().splitlines() == ["iteration 101/70000", "iteration 2101/70000  left 11:19  100 it/s"]


def test_plain_lines(now: list[float]) -> None:
    stream = io.StringIO()
    with Display(3000, 0, "accuracy", True, stream=stream) as display:
        row = {"iteration": 0, "train/accuracy": 0.5, "train/loss": 0.12345}
        for iteration in range(1, 401):  # 8 iterations a second, logged every 40
            now[0] += 0.125
            display.step(iteration, row if iteration % 40 == 0 else None)
        display.validation(400, 0.981, 0.983)
        display.note("testing")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "iteration 80/3000  left 6:05  loss 0.1235  8 it/s"
    assert lines[-2] == "iteration 400/3000  left 5:25  loss 0.1235  val accuracy 0.981  best 0.983  8 it/s"
    assert lines[-1] == "testing"
    assert len(lines) == 7  # every ten seconds, the validation, the note


def test_a_long_validation_is_no_slow_iteration(now: list[float]) -> None:
    stream = io.StringIO()
    with Display(300, 0, "accuracy", True, stream=stream) as display:
        for iteration in range(1, 102):  # two a second
            if iteration == 101:
                now[0] += 100
                display.validation(100, 0.5, 0.5)
            now[0] += 0.5
            display.step(iteration, None)
        display.validation(101, 0.5, 0.5)
    # 199 iterations take 99.5 s, and the validations among them 1 s an iteration as before.
    assert "iteration 101/300  left 4:57  val accuracy 0.5  best 0.5  2 it/s" in stream.getvalue().splitlines()


def test_rate_is_of_late(now: list[float]) -> None:
    """After a slow start (compilation), and from where a resumed run began."""
    stream = io.StringIO()
    with Display(100_000, 1000, "mse", False, stream=stream) as display:
        now[0] += 60
        display.step(1001, None)
        for iteration in range(1002, 4002):
            now[0] += 0.02
            display.step(iteration, {"outer_return": 3.0})
        display.validation(4001, 0.4, 0.35)
    last = stream.getvalue().splitlines()[-1]
    assert "outer_return 3" in last
    assert "val mse 0.4  lowest 0.35" in last
    rate = re.search(r"(\S+) it/s", last)
    assert rate is not None
    assert float(rate[1]) == pytest.approx(50, rel=0.02)


def test_nothing_to_say_yet(now: list[float]) -> None:
    stream = io.StringIO()
    with Display(10, 10, "accuracy", True, stream=stream) as display:
        display.validation(10, 0.5, 0.5)
    assert stream.getvalue() == "iteration 10/10  val accuracy 0.5  best 0.5\n"


def test_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "DRAW_EVERY", 0.0)
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Display(20, 0, "accuracy", True) as display:
            display.step(7, {"train/loss": 0.25})
            display.validation(7, 0.9, 0.95)
            print("a message of another part", file=sys.stderr)
            display.note("testing [on] 600")
    shown = everything(master)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "7/20" in plain
    assert "loss 0.25" in plain
    assert "val accuracy 0.9  best 0.95" in plain
    assert "it/s" in plain
    assert "a message of another part\r\n" in plain
    assert "testing [on] 600\r\n" in plain


def test_terminal_is_left_clean_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(KeyboardInterrupt), Display(20, 0, "accuracy", True):
            raise KeyboardInterrupt
        assert sys.stderr is stream
    shown = everything(master)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def lines_drawn(shown: str) -> list[str]:
    """The live line as it was drawn each time, without the codes that move the cursor and set colours."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], list[str]]:
    """Run a function with a terminal as stderr, and return the lines that it drew."""

    def run(columns: int, draw: Callable[[], None]) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(progress, "DRAW_EVERY", 0.0)
        monkeypatch.setattr(progress, "LIVE_AFTER", 0.0)
        master, slave = pty.openpty()
        with os.fdopen(slave, "w") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            draw()
        return lines_drawn(everything(master))

    return run


@pytest.mark.parametrize("columns", [40, 60, 80, 140])
def test_count_and_time_left_are_never_lost(columns: int, terminal: Callable[..., list[str]], now: list[float]) -> None:
    def draw() -> None:
        with Display(60000, 12000, "accuracy_20way", True) as display:
            for iteration in range(12001, 12100):
                now[0] += 0.25
                display.step(iteration, {"train/loss": 0.12345})
            display.validation(12100, 0.98123, 0.98456)

    drawn = terminal(columns, draw)
    assert max(map(len, drawn)) <= columns
    assert re.match(r"iteration 12100/60000  left 3:1\d:\d\d", drawn[-1])
    for part, narrowest in {"loss": 60, "val accuracy_20way 0.9812": 80, "best 0.9846": 140, "━": 140}.items():
        assert (part in drawn[-1]) == (columns >= narrowest), (part, drawn[-1])


def test_nested_displays_share_the_line(terminal: Callable[..., list[str]], now: list[float]) -> None:
    def draw() -> None:
        for trial in track(range(3), "trial", 3):
            with Display(400, 0, "mse", False) as display:
                now[0] += 60
                display.step(100, {"train/loss": 2.0})
                for _ in track(range(2), f"testing after {trial}", 2, "tasks"):
                    now[0] += 3

    drawn = terminal(100, draw)
    assert "trial 1/3  left 2:06  iteration 100/400  left 3:09  testing after 1 1/2 tasks  left 0:03" in drawn
    assert drawn[0] == "trial 0/3  iteration 100/400  left 3:00  loss 2  1.67 it/s  ━━━━━───────────────"
    assert not progress.LINE.shown


def test_what_takes_long_says_how_far_it_is(now: list[float]) -> None:
    stream = io.StringIO()
    with Progress("testing", 600, "tasks", stream=stream) as display:
        for _ in range(30):
            now[0] += 1
            display.update(10)
    assert stream.getvalue().splitlines() == [f"testing {n}/600 tasks  left 0:{60 - n // 10}" for n in (100, 200, 300)]
    stream = io.StringIO()
    with Progress("a.zip", 3_000_000, "MB", scale=1e6, summary=True, stream=stream) as display:
        display.update(3_000_000)
    assert stream.getvalue() == "a.zip 3.0/3.0 MB\n"


def test_no_live_line_in_a_terminal_that_cannot_move_its_cursor(
    monkeypatch: pytest.MonkeyPatch, terminal: Callable[..., list[str]]
) -> None:
    def draw() -> None:
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
        with Display(20, 0, "mse", False) as display:
            display.step(3, {"train/loss": 1.0})

    assert terminal(80, draw)[-1].startswith("iteration 3/20")


def test_no_colour_and_no_progress_on_request(
    monkeypatch: pytest.MonkeyPatch, terminal: Callable[..., list[str]]
) -> None:
    def draw() -> None:
        set_up_logging("quiet")
        try:
            with Display(20, 0, "mse", False) as display:
                display.step(3, {"train/loss": 1.0})
                console.logging.getLogger("metarun").info("a message")
                console.logging.getLogger("metarun").warning("a warning")
        finally:
            set_up_logging("normal")

    assert terminal(80, draw) == ["a warning"]


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 201.4, 3600, 90061)] == ["0:00", "3:21", "1:00:00", "25:01:01"]
