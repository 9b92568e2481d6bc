"""Choice of the number of CPU threads of a run, from the operations of one of its steps."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from metarun import distributed
from metarun.algorithms.base import Algorithm
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.engine.step import Engine
from metarun.engine.watching import OperationMode
from metarun.tasks.rng import forked_rng

log = logging.getLogger("metarun")

SECONDS_PER_CALL = 8e-6
"""Time of an operation on a few elements: Python, autograd and dispatch."""
SECONDS_PER_ELEMENT = 0.35e-9
"""Time of an elementwise operation for each element of its largest tensor, on one thread."""
SECONDS_PER_FLOP = 1 / 70e9
"""Time of a floating-point operation of a matrix product or a convolution, on one thread."""
LONG = 300e-6
"""Seconds on one thread from which an operation is worth sharing, as it outweighs waiting for the other threads."""
SHARE_OF_LONG = 0.6
"""Share of a step's time that lies in such operations from which a step uses all cores."""
MAX_OPERATIONS = 20_000
"""Operations that are looked at; longer steps repeat themselves."""
STARVED = 0.75
"""Ratio of CPU time to wall time below which a thread waits for other processes. Several threads would wait for each
other too, which makes steps slower than one thread."""


@dataclass(frozen=True)
class Operation:
    """The size of one operation of a step."""

    elements: int
    """Elements of its largest tensor."""
    flops: int = 0
    """Floating-point operations of a matrix product or a convolution; else 0."""

    @property
    def seconds(self) -> float:
        """Estimated time on one thread, beside the time of the call."""
        return max(self.elements * SECONDS_PER_ELEMENT, self.flops * SECONDS_PER_FLOP)


def meta_train_step(algorithm: Algorithm, batch: Any) -> object:
    """Take a step of meta-training, in which an optimizer's own step counts for nothing."""
    if isinstance(algorithm, SupervisedAlgorithm) and algorithm.optimizer is not None:
        algorithm.begin_iteration(0)
        return Engine(algorithm).gradient(batch)
    return algorithm.meta_step(batch, 0)


def choose_threads(
    algorithm: Algorithm,
    draw: Callable[[], Any],
    processes: int = 1,
    step: Callable[[Algorithm, Any], object] = meta_train_step,
) -> int:
    """Return the number of threads for a run: all cores if they would share most of a step's time, else one.

    A copy of the algorithm takes one step on one thread, whose operations are looked at. On a machine that is not busy
    the choice depends on their sizes alone, so that a run that is repeated computes the same bits. Threads that share
    small operations wait for each other at each of them: a few microseconds, and far more on a busy machine.

    Args:
        algorithm: The algorithm, on the CPU. It is left as it is.
        draw: Function that draws this process's share of a meta-batch.
        processes: Number of processes that share the cores.
        step: The step, a function of the algorithm and a batch.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // processes)
    if cores == 1:
        return 1
    before = torch.get_num_threads()
    work = _Operations()
    try:
        batch, learner = draw(), copy.deepcopy(algorithm)  # on all threads: the first batch may embed a data set
        torch.set_num_threads(1)
        started, used = time.perf_counter(), time.process_time()
        with contextlib.suppress(_Enough), distributed.alone(), forked_rng(torch.device("cpu")), work:
            step(learner, batch)
    except Exception as error:  # a step that fails says so when the run takes it
        log.debug("threads: the step could not be looked at (%s)", error)
        return cores
    finally:
        torch.set_num_threads(before)
    received = (time.process_time() - used) / (time.perf_counter() - started)
    share = share_of_long(work.operations)
    log.debug("threads: %.0f %% of a step in long operations; %.2f CPUs received", 100 * share, received)
    return cores if share >= SHARE_OF_LONG and received >= STARVED else 1


def share_of_long(operations: Iterable[Operation]) -> float:
    """Return the share of the estimated time of a step on one thread that lies in :data:`LONG` operations."""
    seconds = [operation.seconds for operation in operations]
    total = sum(seconds) + SECONDS_PER_CALL * len(seconds)
    return sum(s for s in seconds if s >= LONG) / total if total else 0.0


class _Enough(Exception):
    """Ends a step after :data:`MAX_OPERATIONS`."""


class _Operations(OperationMode):
    """Records the sizes of operations, except for views."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not func.is_view:
            sizes = (t.numel() for t in tree_leaves((args, result)) if isinstance(t, torch.Tensor))
            flops = flop_registry.get(func._overloadpacket)
            count = flops(*args, **kwargs, out_val=result) if flops else 0
            self.operations.append(Operation(max(sizes, default=0), count))
            if len(self.operations) >= MAX_OPERATIONS:
                raise _Enough
        return result
