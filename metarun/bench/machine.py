"""Control and measurement of threads, time and memory during a benchmark."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterator

import torch

from metarun.bench.implementations import PreparedStep
from metarun.training.device import forget_peak, resident


@contextlib.contextmanager
def limit_threads(threads: int, bind: bool) -> Iterator[None]:
    """Limit the CPU threads within the block.

    Args:
        threads: Number of threads of torch.
        bind: Also bind the process to as many cores. This is the only limit that libraries with their own thread pool,
            such as JAX, respect. They must not have started their threads yet.
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
    """Wait until all work queued on ``device`` is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def time_step(prepared: PreparedStep, device: torch.device, repeats: int = 1) -> float:
    """Return the seconds that a step takes, averaged over ``repeats`` steps."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        prepared.step()
    synchronise(device)
    return (time.perf_counter() - start) / repeats


def measure_added_memory(prepared: PreparedStep, device: torch.device) -> float:
    """Return the peak memory of a step minus the memory held before it, in MB.

    A first step warms up and is not measured. On CUDA the value counts torch's allocations, elsewhere the memory of the
    whole process, which should have been started for this measurement. It is too low for libraries that keep freed
    memory for reuse, as JAX may.
    """
    prepared.step()
    if device.type == "cuda":
        synchronise(device)
        forget_peak(device)
        before = torch.cuda.memory_allocated(device)
        prepared.step()
        synchronise(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    trim_memory()
    held = resident("VmRSS")
    forget_peak(device)
    prepared.step()
    return (resident("VmHWM") - held) / 1e6


def trim_memory() -> None:
    """Return freed memory that the C library keeps for reuse to the system. Does nothing outside Linux."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
