"""Device and memory use of a run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from pathlib import Path

import torch
from torch import nn

from metarun import distributed
from metarun.errors import UserError
from metarun.tasks.base import Task

_CONTAINER = Path("/sys/fs/cgroup/memory.max")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def choose_device(name: str, key: str = "runner.device") -> torch.device:
    """Return the device called ``name``.

    ``auto`` is CUDA if available, else MPS, else the CPU. If several processes share a run, ``auto`` and ``cuda`` give
    each its own GPU.

    Args:
        name: auto, cpu, cuda, cuda:N or mps.
        key: Configuration key, for messages.

    Raises:
        UserError: The device is unknown or not available.
    """
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    number, processes = distributed.local_rank_and_size()
    if processes > 1 and has_cuda and name in ("auto", "cuda"):
        name = f"cuda:{number}"
        if number < torch.cuda.device_count():
            torch.cuda.set_device(number)  # else every process would also open the first GPU
    if name == "auto":
        return torch.device("cuda" if has_cuda else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{key}={name} is not a device; allowed: auto, cpu, cuda, cuda:N, mps") from None
    available = {
        "cpu": True,
        "cuda": has_cuda and (device.index or 0) < torch.cuda.device_count(),
        "mps": has_mps,
    }
    if not available.get(device.type, False):
        found = [
            "cpu",
            *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
            *(["mps"] if has_mps else []),
        ]
        raise UserError(f"{key}={name} is not available here; this machine has {', '.join(found)} (or auto)")
    return device


LARGE = 10**6
"""Parameters from which a policy is worth copying every observation of simulated environments to a GPU."""


def device_for(name: str, task: Task, algorithm: nn.Module) -> torch.device:
    """Return the device on which to train ``algorithm`` on ``task``.

    It is that of :func:`choose_device`, but ``auto`` leaves small policies on the CPU if their environments are
    simulated there: each step of an episode copies observations to the GPU and actions back, and waits for both.

    Args:
        name: auto, cpu, cuda, cuda:N or mps.
        task: The task family.
        algorithm: The learner.

    Raises:
        UserError: The device is unknown or not available.
    """
    if name == "auto" and task.simulated_on_host and sum(p.numel() for p in algorithm.parameters()) < LARGE:
        return torch.device("cpu")
    return choose_device(name)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step.

    If large tensors were returned to the system after every step, each page would fault again when it is reallocated:
    about a quarter of the time of a Conv-4 step. Only glibc is configured.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 << 20)


def limit_memory() -> None:
    """Let allocations beyond the machine's memory fail, so that a run ends with a message instead of being killed.

    The limit is the memory of the machine, or of the container if that has less. Only Linux is configured.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(ImportError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        unused = max(0.0, resident("VmData") - resident("VmRSS"))  # reserved, as for the stacks of threads
        size = physical_memory() + int(unused)
        resource.setrlimit(resource.RLIMIT_DATA, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def physical_memory() -> int:
    """Return the memory in bytes of the machine, or of the container if that has less. Linux only."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):  # ValueError: "max", no limit
        sizes.append(int(_CONTAINER.read_text()))
    return min(sizes)


def forget_peak(device: torch.device) -> None:
    """Reset the peak of memory use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        _RESET.write_text("5")


def peak(device: torch.device) -> float:
    """Return the peak of memory use in bytes: torch's allocations on CUDA, else the whole process."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else resident("VmHWM")


def resident(field: str) -> float:
    """Return the resident memory of this process in bytes: current (VmRSS) or peak (VmHWM); NaN if unknown."""
    if _STATUS.is_file():
        (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(field))
        return 1024.0 * int(line.split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def ran_out(error: BaseException) -> bool:
    """Return whether ``error`` means that the device or the host is out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(
        re.search(r"(can't allocate|not enough|out of) memory|std::bad_alloc", str(error))
    )
