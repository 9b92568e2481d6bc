"""Parallel metarun commands, each in its own process and, if there are several GPUs, on its own GPU."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from metarun.cli.lifeline import child
from metarun.errors import Interrupted, RunFailed
from metarun.progress import clock
from metarun.training.signals import stopping_signals

log = logging.getLogger("metarun")

Command = Callable[[], "Sequence[str] | None"]
"""Function called when a command's turn comes. It returns the words of the command, or ``None`` if nothing is left
to do.
"""


def run_all(commands: Mapping[str, Command], jobs: int, progress: str = "", results: bool = True) -> None:
    """Run commands, ``jobs`` at a time.

    A signal is passed on to the running commands, which stop after a checkpoint.

    Args:
        commands: The commands by the names that messages use.
        jobs: Number of commands at a time.
        progress: Label of the line that says how many are done and how long the others take; empty for none.
        results: False to discard what the commands write to standard output.

    Raises:
        RunFailed: Some commands failed. The message names them.
        Interrupted: A signal was received.
    """
    devices: queue.Queue[int] = queue.Queue()
    for number in range(jobs):
        devices.put(number)
    running: set[subprocess.Popen[bytes]] = set()
    started, finished = time.monotonic(), itertools.count(1)
    stopped = threading.Event()
    gpus = count_gpus()

    def one(command: Command) -> int:
        device = devices.get()
        try:
            words = None if stopped.is_set() else command()
            if words is None:
                return 0
            own = {"CUDA_VISIBLE_DEVICES": str(device % gpus)} if jobs > 1 and gpus > 1 else {}
            own |= {"TERM": "dumb"} if jobs > 1 else {}  # plain lines: a terminal has room for one live line
            with child([sys.executable, "-m", "metarun", *words], {**os.environ, **own}, results) as process:
                running.add(process)
                try:
                    code = process.wait()
                finally:
                    running.discard(process)
            done = next(finished)
            if progress and done < len(commands):
                left = (time.monotonic() - started) / done * (len(commands) - done)
                log.info("metarun: %s %d/%d  left %s", progress, done, len(commands), clock(left))
            return code
        finally:
            devices.put(device)

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        for process in list(running):
            process.send_signal(signal.SIGTERM)
        raise Interrupted(number)

    before = {number: signal.signal(number, stop) for number in stopping_signals()}
    try:
        with ThreadPoolExecutor(jobs) as pool:
            codes = dict(zip(commands, pool.map(one, commands.values()), strict=True))
    except Interrupted:
        log.info("metarun: stopped; the same command continues")
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if failed := {name: code for name, code in codes.items() if code}:
        names = ", ".join(f"{name} (exit {code})" for name, code in failed.items())
        raise RunFailed(f"{len(failed)} of {len(codes)} runs failed: {names}; their output is above")


def count_gpus() -> int:
    """Return the number of NVIDIA GPUs, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
