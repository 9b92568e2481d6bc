"""One run on several devices: a process (rank) for each, that computes its tasks of every meta-batch.

Started by ``runner.devices=N`` or torchrun (which SLURM's srun starts on several machines), that tell every process of
the others by RANK, WORLD_SIZE and their like. All ranks hold the same parameters and take the same steps, since
gradients are averaged before they are used; the first rank (the lead) alone validates, tests and writes. With one
process, nothing here does anything.
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
    """Another process of this run has ended: what this one says of it is the consequence, not the cause."""


PATIENCE = timedelta(days=7)
"""How long ranks wait for the lead, which validates meanwhile. A rank that is lost ends the others at once anyway."""


def world() -> int:
    """The number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0


def here() -> tuple[int, int]:
    """The number of this process among those on this machine, and how many those are."""
    if world() == 1:
        return 0, 1
    return int(os.environ.get("LOCAL_RANK", rank())), int(os.environ.get("LOCAL_WORLD_SIZE", world()))


def leads() -> bool:
    """Whether this process validates, tests and writes."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Within the block, the ranks are connected: by NCCL for tensors on GPUs, by Gloo for others."""
    if world() == 1 or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _others():
        dist.init_process_group(backend, rank=rank(), world_size=world(), timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def leaving_together() -> Iterator[None]:
    """The block ends, if well or stopped by a signal, when the last rank has come to its end."""
    try:
        yield
    except Interrupted:
        agreed(0)
        raise
    agreed(0)


@contextmanager
def lead_first() -> Iterator[None]:
    """The block is done by the lead, then by the others: they find what it downloaded or made."""
    if not leads():
        agreed(0)
    yield
    if leads() and world() > 1:
        agreed(0)


@overload
def average(values: Tensor) -> Tensor: ...
@overload
def average(values: Sequence[Tensor]) -> list[Tensor]: ...
def average(values: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """The means over the ranks, by one flat all-reduce. Every rank computes as many tasks."""
    if isinstance(values, Tensor):
        return average([values])[0]
    if world() == 1:
        return list(values)
    flat = torch.cat([value.detach().flatten() for value in values])
    with _others():
        dist.all_reduce(flat)
    parts = (flat / world()).split([value.numel() for value in values])
    return [part.view_as(value) for part, value in zip(parts, values, strict=True)]


def average_gradients(parameters: Iterable[nn.Parameter], others: Sequence[Tensor] = ()) -> None:
    """Put the means over the ranks in place of the gradients; and of the tensors ``others``, in the same all-reduce."""
    if world() == 1:
        return
    own = [p.grad for p in parameters if p.grad is not None] + [b for b in others if b.is_floating_point()]
    with torch.no_grad():
        for value, mean in zip(own, average(own), strict=True):
            value.copy_(mean)


def agreed(number: int) -> int:
    """The largest of the ranks' numbers; all wait for it."""
    if world() == 1:
        return number
    value = torch.tensor(number)
    with _others():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def told(value: Any = None) -> Any:
    """What the lead says, a plain value."""
    if world() == 1:
        return value
    values = [value]
    with _others():
        dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def take_from_lead(module: nn.Module) -> None:
    """Give every rank the lead's parameters and buffers."""
    if world() == 1:
        return
    with torch.no_grad(), _others():
        for value in module.state_dict().values():
            dist.broadcast(value, 0)


@contextmanager
def _others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise OthersLost(f"rank {rank()} of {world()} lost the others of this run: {reason}") from None
