"""Device, number of CPU threads, and memory use of a run."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import os
import re
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metarun import distributed
from metarun.algorithms.base import Algorithm
from metarun.engine.step import Engine
from metarun.errors import UserError
from metarun.tasks.base import Task

GRAIN = 32_768
"""Elements up to which torch uses a single thread for an operation."""
LARGE = 500_000
"""Elements from which on a second thread gains more than waiting for a busy core can cost."""
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


class _Work(TorchDispatchMode):
    """Records the number of elements of each operation; for matrix products and convolutions, their multiplications."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves((args, result)) if isinstance(t, torch.Tensor)]
        product = "mm" in func.__name__ or "convolution" in func.__name__
        self.sizes.append(max(sizes, default=0) * (8 if product else 1))
        return result


def choose_threads(algorithm: Algorithm, task: Task, meta_batch: int, processes: int = 1) -> int:
    """Return the number of threads for one meta-step: all cores if the operations are large enough to share, else one.

    The sizes are found by running the step on the ``meta`` device. Threads cost a few microseconds an operation, and
    far more on a busy machine: a tiny recurrent network ran twenty times slower with two. So the many small operations
    of a rollout outweigh the few large ones of its update.

    Args:
        algorithm: The algorithm.
        task: The task family.
        meta_batch: Tasks of this process's share of a meta-batch.
        processes: Number of processes that share the cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // processes)
    if cores == 1:
        return 1
    meta = torch.device("meta")
    try:
        dry_task = copy.copy(task).to(meta)
        dry = copy.deepcopy(algorithm).to(meta)
        work = _Work()
        with work:
            Engine(dry).meta_step(dry_task.batch("train", range(meta_batch), dry.train_shape(task.shape)), 0)
    except Exception:  # a user's own module need not run on the meta device
        return cores
    shared = [size for size in work.sizes if size > GRAIN]
    return cores if shared and median(shared) >= LARGE else 1


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
    return isinstance(error, RuntimeError) and bool(re.search(r"(can't allocate|not enough|out of) memory", str(error)))
