"""Where a run computes: the device, the number of CPU threads, and the memory it takes."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import os
import re
import resource
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
"""Elements up to which torch uses one thread for an operation anyway."""
LARGE = 500_000
"""Elements from which on a second thread gains more than waiting for a busy machine's other core can cost."""
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def choose_device(name: str, key: str = "runner.device") -> torch.device:
    """``auto``: CUDA, else Apple's MPS, else the CPU; ``auto`` and ``cuda``, where several processes share a run: each
    one's own GPU. Raises :class:`UserError` where ``key=name`` is not there.
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
        raise UserError(f"{key}={name} is no device; allowed: auto, cpu, cuda, cuda:N, mps") from None
    there = {
        "cpu": True,
        "cuda": has_cuda and (device.index or 0) < torch.cuda.device_count(),
        "mps": has_mps,
    }
    if not there.get(device.type, False):
        found = [
            "cpu",
            *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
            *(["mps"] if has_mps else []),
        ]
        raise UserError(f"{key}={name} is not available here; this machine has {', '.join(found)} (or auto)")
    return device


def keep_freed_memory() -> None:
    """Let the C library keep what a step frees, for the next step to use.

    Returned to the system after every step, large tensors cost a page fault a page when they are made again: about a
    quarter of a Conv-4 step. Does nothing where the C library is not GNU's.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 << 20)


class _Work(TorchDispatchMode):
    """Notes how many elements each operation touches, a matrix product or convolution its multiplications."""

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
    """Threads for one meta-step: all cores if the operations that would be shared out are large, else one.

    All that this process has, if several share the cores.
    Found by running the step on the ``meta`` device, which computes shapes and nothing else. Threads cost a few
    microseconds an operation, and far more on a busy machine: a tiny recurrent net ran twenty times slower with
    two. So the many small operations of a rollout outweigh the few large ones of its update.
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
    """Count the peak from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        _RESET.write_text("5")


def peak(device: torch.device) -> float:
    """Bytes at the peak: of torch's allocations on CUDA, else of the whole process."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else resident("VmHWM")


def resident(field: str) -> float:
    """Bytes of this process in memory: now (VmRSS) or at the peak (VmHWM), where the system says only the latter."""
    if _STATUS.is_file():
        (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(field))
        return 1024.0 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def ran_out(error: BaseException) -> bool:
    """Whether ``error`` says that memory was not to be had, on the device or the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(re.search(r"(can't allocate|not enough|out of) memory", str(error)))
