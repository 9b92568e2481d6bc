"""The machine while something is measured: its threads, its clock, and the memory of this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterator

import torch

from metarun.bench.implementations import Ready
from metarun.training.device import forget_peak, resident


@contextlib.contextmanager
def limited_to(threads: int, bind: bool) -> Iterator[None]:
    """Within the block torch computes in ``threads`` threads; if ``bind``, so many cores are all there are.

    That is the only limit which a library with threads of its own, such as JAX, keeps to; it must not have started.
    """
    before = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    bind = bind and len(cores) > threads
    torch.set_num_threads(threads)
    if bind:
        os.sched_setaffinity(0, sorted(cores)[-threads:])
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if bind:
            os.sched_setaffinity(0, cores)


def synchronise(device: torch.device) -> None:
    """Wait until everything queued on ``device`` is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds(ready: Ready, device: torch.device, repeats: int = 1) -> float:
    """Of one step, averaged over ``repeats``."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        ready.step()
    synchronise(device)
    return (time.perf_counter() - start) / repeats


def added_by_step(ready: Ready, device: torch.device) -> float:
    """Peak memory of one step above what was held before it, in MB; a first step warms up what lasts.

    On CUDA, of torch's allocations; else of the whole process, which should have been made for this alone. A library
    that keeps what it has freed, as JAX may, shows less than it needs.
    """
    ready.step()
    if device.type == "cuda":
        synchronise(device)
        forget_peak(device)
        before = torch.cuda.memory_allocated(device)
        ready.step()
        synchronise(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    give_back_freed_memory()
    held = resident("VmRSS")
    forget_peak(device)
    ready.step()
    return (resident("VmHWM") - held) / 1e6


def give_back_freed_memory() -> None:
    """To the system, where the C library keeps what was freed for later use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
