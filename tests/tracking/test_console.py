"""The display on a real pseudo-terminal, and plain lines elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import sys

import pytest

from metarun.tracking import console
from metarun.tracking.console import Display, clock


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
    assert lines[0] == "iteration 80/3000  loss 0.1235  8 it/s  left 6:05"
    assert lines[-2] == "iteration 400/3000  loss 0.1235  val accuracy 0.981 (best 0.983)  8 it/s  left 5:25"
    assert lines[-1] == "testing"
    assert len(lines) == 7  # every ten seconds, the validation, the note


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
    assert "val mse 0.4 (lowest 0.35)" in last
    rate = re.search(r"(\S+) it/s", last)
    assert rate is not None
    assert float(rate[1]) == pytest.approx(50, rel=0.02)


def test_nothing_to_say_yet(now: list[float]) -> None:
    stream = io.StringIO()
    with Display(10, 10, "accuracy", True, stream=stream) as display:
        display.validation(10, 0.5, 0.5)
    assert stream.getvalue() == "iteration 10/10  val accuracy 0.5 (best 0.5)\n"


def test_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "DRAW_EVERY", 0.0)
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
    assert "val accuracy 0.9 (best 0.95)" in plain
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


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 201.4, 3600, 90061)] == ["0:00", "3:21", "1:00:00", "25:01:01"]
