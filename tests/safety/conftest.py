"""A small finished run that each test may spoil, and a guard against hanging."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
import torch

from metarun.cli import main

SECONDS = 60  # far more than any of them takes on a busy machine; a pipe takes for ever
CPU_SECONDS = 10  # of this process, however busy the machine is; a bomb takes minutes
QUICK = ["task=regression/sinusoid", "runner.iterations=2", "runner.validate_every=1", "runner.val_episodes=2",
         "runner.test_episodes=2", "runner.plots=false", "runner.threads=1", "runner.device=cpu",
         "tracker.wandb=disabled"]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_hanging() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"hung for {SECONDS} s, or worked for {CPU_SECONDS} s")

    timers = {signal.ITIMER_REAL: (signal.SIGALRM, SECONDS), signal.ITIMER_PROF: (signal.SIGPROF, CPU_SECONDS)}
    before = {number: signal.signal(number, stop) for number, _ in timers.values()}
    for timer, (_, seconds) in timers.items():
        signal.setitimer(timer, seconds)
    yield
    for timer in timers:
        signal.setitimer(timer, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _own_path() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    top = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(top) if hasattr(contextlib, "chdir") else _inside(top):
        assert main([*QUICK, "name=x"]) == 0
    return next(top.glob("outputs/x/*"))


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    yield
    os.chdir(before)


@pytest.fixture
def run(_finished: Path, tmp_path: Path) -> Path:
    """A finished run in the test's own directory."""
    return Path(shutil.copytree(_finished, tmp_path / "outputs" / "x" / _finished.name))
