"""Several metarun commands at once, each in a process of its own and on a GPU of its own where there are several."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from metarun.cli.lifeline import child
from metarun.errors import Interrupted, RunFailed
from metarun.training.signals import stopping_signals

Command = Callable[[], "Sequence[str] | None"]
"""Called when its turn has come: the words of a command, or ``None`` if nothing is left to do."""


def run_all(commands: Mapping[str, Command], jobs: int) -> None:
    """Run them, ``jobs`` at a time. Raises :class:`RunFailed` at the end, naming those that failed.

    A signal goes on to those that run; they stop after a checkpoint, and :class:`Interrupted` is raised.
    """
    devices: queue.Queue[int] = queue.Queue()
    for number in range(jobs):
        devices.put(number)
    running: set[subprocess.Popen[bytes]] = set()
    stopped = threading.Event()
    gpus = count_gpus()

    def one(command: Command) -> int:
        device = devices.get()
        try:
            words = None if stopped.is_set() else command()
            if words is None:
                return 0
            own = {"CUDA_VISIBLE_DEVICES": str(device % gpus)} if jobs > 1 and gpus > 1 else {}
            with child([sys.executable, "-m", "metarun", *words], {**os.environ, **own}) as process:
                running.add(process)
                try:
                    return process.wait()
                finally:
                    running.discard(process)
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
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if failed := {name: code for name, code in codes.items() if code}:
        told = ", ".join(f"{name} (exit {code})" for name, code in failed.items())
        raise RunFailed(f"{len(failed)} of {len(codes)} runs failed: {told}; what they printed is above")


def count_gpus() -> int:
    """How many NVIDIA GPUs there are, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
