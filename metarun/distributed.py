"""Data parallelism over processes: each rank computes its share of the tasks of every meta-batch.

``runner.devices=N`` or torchrun (also under SLURM's srun) starts the processes and sets RANK, WORLD_SIZE, LOCAL_RANK
and LOCAL_WORLD_SIZE. All ranks hold the same parameters and take the same steps, because gradients are averaged before
they are used. Only rank 0, the main process, validates, tests and writes. In a run of one process every function here
returns its input unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn

from metarun.errors import Interrupted, RunFailed


class OthersLost(RunFailed):
    """Another process of this run has ended. The error of that process, not this one, says why."""


TIMEOUT = timedelta(days=7)
"""Longest wait of a collective operation. The other ranks wait while the main process validates; a lost rank ends the
others at once, whatever the timeout."""


_is_alone = False


def world_size() -> int:
    """Number of processes of this run; 1 within :func:`alone`."""
    return 1 if _is_alone else int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def alone() -> Iterator[None]:
    """Compute within the block as if this were the only process: collective operations return their input."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def rank() -> int:
    """Number of this process in the run, from 0."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


def local_rank_and_size() -> tuple[int, int]:
    """Number of this process among those of the run on this machine, from 0, and their count."""
    if world_size() == 1:
        return 0, 1
    return int(os.environ.get("LOCAL_RANK", rank())), int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_main() -> bool:
    """True in the process that validates, tests and writes."""
    return rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the ranks within the block: NCCL for tensors on GPUs, Gloo for tensors on the CPU."""
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _lost_ranks_named():
        dist.init_process_group(backend, rank=rank(), world_size=world_size(), timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def finish_together() -> Iterator[None]:
    """Wait at the end of the block for the last rank, unless the block failed. A stop by signal counts as an end."""
    try:
        yield
    except Interrupted:
        all_reduce_max(0)
        raise
    all_reduce_max(0)


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block in the main process, then in the others, which find the files that it downloaded or built."""
    if not is_main():
        all_reduce_max(0)
    yield
    if is_main() and world_size() > 1:
        all_reduce_max(0)


@overload
def average(values: Tensor) -> Tensor: ...
@overload
def average(values: Sequence[Tensor]) -> list[Tensor]: ...
def average(values: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """Mean of each tensor over the ranks, by one flat all-reduce. Every rank computes the same number of tasks."""
    if isinstance(values, Tensor):
        return average([values])[0]
    if world_size() == 1:
        return list(values)
    flat = torch.cat([value.detach().flatten() for value in values])
    with _lost_ranks_named():
        dist.all_reduce(flat)
    parts = (flat / world_size()).split([value.numel() for value in values])
    return [part.view_as(value) for part, value in zip(parts, values, strict=True)]


def average_gradients(parameters: Iterable[nn.Parameter], others: Sequence[Tensor] = ()) -> None:
    """Replace gradients by their means over the ranks, in place; the tensors ``others`` too, in the same all-reduce."""
    if world_size() == 1:
        return
    own = [p.grad for p in parameters if p.grad is not None] + [b for b in others if b.is_floating_point()]
    with torch.no_grad():
        for value, mean in zip(own, average(own), strict=True):
            value.copy_(mean)


def all_reduce_max(number: int) -> int:
    """Largest of the ranks' numbers. Every rank waits for it, so that the call is also a barrier."""
    if world_size() == 1:
        return number
    value = torch.tensor(number)
    with _lost_ranks_named():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def broadcast_object(value: Any = None) -> Any:
    """The main process's ``value``, a plain Python object, in every rank."""
    if world_size() == 1:
        return value
    values = [value]
    with _lost_ranks_named():
        dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def broadcast_parameters(module: nn.Module) -> None:
    """Copy the main process's parameters and buffers of ``module`` to every rank, in place."""
    if world_size() == 1:
        return
    with torch.no_grad(), _lost_ranks_named():
        for value in module.state_dict().values():
            dist.broadcast(value, 0)


@contextmanager
def _lost_ranks_named() -> Iterator[None]:
    """Turn a failed collective operation into :class:`OthersLost`."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise OthersLost(f"rank {rank()} of {world_size()} lost the others of this run: {reason}") from None
