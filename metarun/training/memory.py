"""How much memory a run takes at its peak."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
