"""Where a run computes: the device, and how many threads on the CPU."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metarun.algorithms.base import Algorithm
from metarun.errors import UserError
from metarun.tasks.base import Task


def choose_device(name: str) -> torch.device:
    """``auto``: CUDA, else Apple's MPS, else the CPU. Raises :class:`UserError` where ``name`` is not there."""
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"runner.device={name} is no device; allowed: auto, cpu, cuda, cuda:N, mps") from None
    there = {"cpu": True, "cuda": has_cuda and (device.index or 0) < torch.cuda.device_count(), "mps": has_mps}
    if not there.get(device.type, False):
        found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *(["mps"] if has_mps else [])]
        raise UserError(f"runner.device={name} is not available here; this machine has {', '.join(found)} (or auto)")
    return device


class _Work(TorchDispatchMode):
    """Counts operations and the elements they touch; a matrix product counts its multiplications."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, result)) if isinstance(t, torch.Tensor)]
        self.operations += 1
        self.elements += sum(t.numel() for t in tensors)
        name = func.__name__
        if "mm" in name or "convolution" in name:
            # One output element of a product or convolution costs one multiplication a weight that it sees.
            sizes = sorted((t.numel() for t in tensors), reverse=True)
            self.elements += 8 * sizes[0]
        return result


def choose_threads(algorithm: Algorithm, task: Task, meta_batch: int) -> int:
    """Threads for one meta-step: all cores if its operations are large on average, else one.

    Found by running the step on the ``meta`` device, which computes shapes and nothing else. Threads cost a few
    microseconds an operation, and far more on a busy machine: a tiny recurrent net ran twenty times slower with two.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1:
        return 1
    meta = torch.device("meta")
    try:
        dry_task = copy.copy(task).to(meta)
        dry = copy.deepcopy(algorithm).to(meta)
        work = _Work()
        with work:
            dry.meta_step(dry_task.batch("train", range(meta_batch), dry.train_shape(task.shape)), 0)
    except Exception:  # a user's own module need not run on the meta device
        return cores
    return cores if work.elements > 200_000 * work.operations else 1
